"""Files and folders are written whole or not at all."""

import pytest

from llmshearing.utils.files import replacing, replacing_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fail_after_writing(path):
    path.write_text("half")
    raise KeyError


def test_a_file_is_replaced_on_success_alone(tmp_path):
    path = tmp_path / "deep" / "a"
    with replacing(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(KeyError), replacing(path) as temporary:
        fail_after_writing(temporary)
    assert path.read_text() == "one"
    assert names(path.parent) == ["a"]


def test_torchs_failure_to_write_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"Writing .*a failed: unexpected pos"), replacing(tmp_path / "a"):
        raise RuntimeError("unexpected pos 64 vs 0")


def test_a_folder_is_replaced_on_success_alone(tmp_path):
    for text in ("one", "two"):
        with replacing_folder(tmp_path / "f", marker="m") as temporary:
            (temporary / "m").write_text(text)
        assert (tmp_path / "f" / "m").read_text() == text
    with pytest.raises(KeyError), replacing_folder(tmp_path / "f", marker="m") as temporary:
        fail_after_writing(temporary / "m")
    assert (tmp_path / "f" / "m").read_text() == "two"
    assert names(tmp_path) == ["f"]


def test_what_is_no_such_folder_is_left_alone(tmp_path):
    (tmp_path / "f").mkdir()
    with replacing_folder(tmp_path / "f", marker="m") as temporary:  # empty: taken
        (temporary / "n").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no m"), replacing_folder(tmp_path / "f", marker="m"):
        pass
    assert (tmp_path / "f" / "n").read_text() == "mine"
