import pytest

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueFolder, TaskMissing, open_glue


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
