import pytest

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import DIAGNOSTIC, TASKS, GlueFolder, TaskMissing, load_sts, open_glue


def write(folder, task, split, content, encoding="utf-8"):
    (folder / task).mkdir(exist_ok=True)
    (folder / task / f"{split}.tsv").write_text(content, encoding=encoding)


def test_the_nine_tasks_have_their_official_metrics():
    assert {name: task.metrics for name, task in TASKS.items()} == {
        "CoLA": ("matthews",),
        "SST-2": ("accuracy",),
        "MRPC": ("f1", "accuracy"),
        "STS-B": ("pearson", "spearman"),
        "QQP": ("f1", "accuracy"),
        "MNLI": ("accuracy",),
        "QNLI": ("accuracy",),
        "RTE": ("accuracy",),
        "WNLI": ("accuracy",),
    }


def test_cola_has_no_header(tmp_path):
    write(tmp_path, "CoLA", "dev", "gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tSailors the rode.\n")
    examples = GlueFolder(tmp_path).load(TASKS["CoLA"], "dev")
    assert examples.texts == (["The sailors rode.", "Sailors the rode."],)
    assert examples.labels == [1.0, 0.0]


def test_quotes_are_text_and_a_byte_order_mark_is_none(tmp_path):
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    write(tmp_path, "MRPC", "dev", header + '1\t2\t3\tHe said " yes .\t" No , " she said .\n', "utf-8-sig")
    examples = GlueFolder(tmp_path).load(TASKS["MRPC"], "dev")
    assert examples.texts == (['He said " yes .'], ['" No , " she said .'])
    assert examples.labels == [1.0]


def test_class_names_become_the_numbers_of_the_hub_s_copy(tmp_path):
    write(tmp_path, "MNLI", "dev_matched", "sentence1\tsentence2\tgold_label\na\tb\tcontradiction\nc\td\tentailment\n")
    assert GlueFolder(tmp_path).load(TASKS["MNLI"], "dev_matched").labels == [2.0, 0.0]


def test_rows_with_surplus_cells_and_a_cut_last_line_are_read(tmp_path):
    write(tmp_path, "RTE", "dev", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\tx\ty\n1\tc")
    examples = GlueFolder(tmp_path).load(TASKS["RTE"], "dev")
    assert examples.texts == (["a"], ["b"])


@pytest.mark.parametrize("ending", ["", "\r"])
def test_a_row_without_its_label_is_an_error_and_a_line_that_is_cut_is_left_out(tmp_path, ending):
    write(tmp_path, "RTE", "dev", f"index\tsentence1\tsentence2\tlabel\n0\ta\tb{ending}\n1\tc\td\tentailment{ending}\n")
    assert GlueFolder(tmp_path).load(TASKS["RTE"], "dev").texts == (["c"], ["d"])
    rows = f"0\ta\tb\tentailment\n1\tc\td\t{ending}\n2\te\tf\tentailment\n"
    write(tmp_path, "RTE", "dev", f"index\tsentence1\tsentence2\tlabel\n{rows}")
    with pytest.raises(UserError, match=r"dev\.tsv, row 2: .*label"):
        GlueFolder(tmp_path).load(TASKS["RTE"], "dev")


@pytest.mark.parametrize("score", ["nan", "inf", "high"])
def test_a_score_that_is_no_finite_number_is_an_error_that_names_its_row(tmp_path, score):
    write(tmp_path, "STS-B", "dev", f"sentence1\tsentence2\tscore\na\tb\t1.5\nc\td\t{score}\n")
    with pytest.raises(UserError, match=rf"dev\.tsv, row 2: label '{score}', but STS-B has finite numbers$"):
        GlueFolder(tmp_path).load(TASKS["STS-B"], "dev")


def test_an_unknown_label_is_an_error_that_names_its_row(tmp_path):
    write(tmp_path, "SST-2", "train", "sentence\tlabel\nfine\t1\nodd\t7\n")
    with pytest.raises(UserError, match=r"train\.tsv, row 2: label '7'"):
        GlueFolder(tmp_path).load(TASKS["SST-2"], "train")


def test_a_task_without_its_file_is_missing_and_no_error(tmp_path):
    with pytest.raises(TaskMissing, match=r"QQP/train\.tsv"):
        GlueFolder(tmp_path).load(TASKS["QQP"], "train")


def test_without_hub_and_folder_the_way_out_is_named(monkeypatch):
    monkeypatch.setattr("sentence_distill.data.glue.offline_requested", lambda: False)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*--glue-dir"):
        open_glue(None)


def test_the_hub_s_copy_is_read_by_its_own_names(monkeypatch):
    import datasets

    def load_dataset(name, config, split):
        if config == "wnli":
            return datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [1]})
        assert (name, config, split) == ("nyu-mll/glue", "mnli", "validation_matched")
        return datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [2], "idx": [0]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = open_glue(None).load(TASKS["MNLI"], "dev_matched")
    assert (examples.texts, examples.labels) == ((["a"], ["b"]), [2.0])


def test_a_test_split_has_its_rows_numbers_and_no_labels(tmp_path):
    write(tmp_path, "CoLA", "test", "index\tsentence\n0\tThe sailors rode.\n1\tSailors the rode.\n")
    write(tmp_path, "QQP", "test", "id\tquestion1\tquestion2\n7\tWhy?\tWhy not?\n3\tWho?\n")
    single, pair = (GlueFolder(tmp_path).load_test(TASKS[name], "test") for name in ("CoLA", "QQP"))
    assert (single.texts, single.labels, single.ids) == ((["The sailors rode.", "Sailors the rode."],), [], [0, 1])
    # Each row of a test split needs a prediction, one that was cut too.
    assert (pair.texts, pair.ids, len(pair)) == ((["Why?", "Who?"], ["Why not?", ""]), [7, 3], 2)


def test_mnli_has_two_test_splits_each_missing_on_its_own(tmp_path):
    write(tmp_path, "MNLI", "test_matched", "index\tgenre\tsentence1\tsentence2\n4\tfiction\ta\tb\n")
    folder = GlueFolder(tmp_path)
    assert TASKS["MNLI"].test == ("test_matched", "test_mismatched")
    assert folder.load_test(TASKS["MNLI"], "test_matched").ids == [4]
    with pytest.raises(TaskMissing, match=r"no MNLI/test_mismatched\.tsv"):
        folder.load_test(TASKS["MNLI"], "test_mismatched")


@pytest.mark.parametrize("name", ["AX/AX.tsv", "diagnostic/diagnostic.tsv", "AX.tsv"])
def test_the_diagnostic_set_is_found_where_downloads_put_it(tmp_path, name):
    with pytest.raises(TaskMissing, match=r"no AX/AX\.tsv"):
        GlueFolder(tmp_path).load_test(DIAGNOSTIC, "test")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("index\tsentence1\tsentence2\n0\tThe cat sat.\tThe cat did not sit.\n")
    examples = GlueFolder(tmp_path).load_test(DIAGNOSTIC, "test")
    (tmp_path / name).write_text("index\tsentence1\tsentence2\n")
    with pytest.raises(TaskMissing, match=rf"^{name} holds no example"):
        GlueFolder(tmp_path).load_test(DIAGNOSTIC, "test")
    assert (examples.texts, examples.ids) == ((["The cat sat."], ["The cat did not sit."]), [0])
    assert DIAGNOSTIC.labels == TASKS["MNLI"].labels


def test_a_test_file_without_numbers_is_an_error(tmp_path):
    write(tmp_path, "SST-2", "test", "index\tsentence\nx\tfine\n")
    with pytest.raises(UserError, match=r"test\.tsv: column 'index' should hold row numbers"):
        GlueFolder(tmp_path).load_test(TASKS["SST-2"], "test")
    write(tmp_path, "SST-2", "test", "sentence\nfine\n")
    with pytest.raises(UserError, match=r"test\.tsv has no column 'index', only sentence"):
        GlueFolder(tmp_path).load_test(TASKS["SST-2"], "test")


def test_the_hub_s_test_splits_have_numbers_and_no_labels(monkeypatch):
    import datasets

    def load_dataset(name, config, split):
        assert (config, split) in {("wnli", "validation"), ("mnli", "test_mismatched"), ("ax", "test")}
        columns = ("sentence1", "sentence2") if config == "wnli" else ("premise", "hypothesis")
        return datasets.Dataset.from_dict({columns[0]: ["a"], columns[1]: ["b"], "label": [-1], "idx": [5]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    hub = open_glue(None)
    for task, split in ((TASKS["MNLI"], "test_mismatched"), (DIAGNOSTIC, "test")):
        examples = hub.load_test(task, split)
        assert (examples.texts, examples.labels, examples.ids) == ((["a"], ["b"]), [], [5])


@pytest.mark.parametrize("scores", [(), ("5.0",), ("3.0", "3.0")])
def test_pairs_with_whose_scores_nothing_can_correlate_are_refused(tmp_path, scores):
    rows = ["sentence1\tsentence2\tscore", *(f"A cat.\tA dog.\t{score}" for score in scores)]
    (tmp_path / "dev.tsv").write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match=rf"dev.tsv holds {len(scores)} pairs?, but no two different scores"):
        load_sts(tmp_path / "dev.tsv")
