import os
import stat

from sentence_distill.pipeline.files import write_atomically


def test_a_pipe_or_device_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"figures")
    assert os.read(reader, 100) == b"figures"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "there.json").write_bytes(b"old")
    for name in ("there.json", "new.json"):
        link = tmp_path / f"link-to-{name}"
        link.symlink_to(f"far/{name}")
        write_atomically(link, b"figures")
        assert link.is_symlink()
        assert (tmp_path / "far" / name).read_bytes() == b"figures"
    assert len(list((tmp_path / "far").iterdir())) == 2
