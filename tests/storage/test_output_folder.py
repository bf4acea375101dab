"""A folder is replaced as a whole, whatever interrupts that, and nothing else is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt_mesh.errors import InputError
from gpt_mesh.storage import output_folder


def write(folder: Path, text: str) -> None:
    with output_folder.replaced(str(folder)) as new:
        (Path(new) / "file").write_text(text)


def test_a_folder_of_the_user_with_a_similar_name_stays(tmp_path: Path) -> None:
    for name in ("n.writing", "n.old", ".n.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("mine")
    for text in ("one", "two"):
        write(tmp_path / "n", text)
        assert (tmp_path / "n" / "file").read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == [".n.tmp", "n", "n.old", "n.writing"]
    assert all((tmp_path / name / "thesis.txt").exists() for name in ("n.writing", "n.old", ".n.tmp"))


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "n", "old")
    with pytest.raises(RuntimeError), output_folder.replaced(str(tmp_path / "n")) as new:
        (Path(new) / "file").write_text("half")
        raise RuntimeError
    assert (tmp_path / "n" / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_between_two_moves(tmp_path: Path, moves: int) -> None:
    """The next try restores the old folder, or finds the new one, and leaves nothing else."""
    write(tmp_path / "n", "old")
    pid = os.fork()
    if pid == 0:
        replace, count = os.replace, 0

        def counted(source: str, target: str) -> None:
            nonlocal count
            if count == moves:
                os._exit(9)
            count += 1
            replace(source, target)

        with output_folder.replaced(str(tmp_path / "n")) as new:
            (Path(new) / "file").write_text("new")
            os.replace = counted  # type: ignore[assignment]
            output_folder.shutil.rmtree = lambda *_, **__: os._exit(9)  # type: ignore[attr-defined]
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    kept = "new" if moves == 2 else "old"
    with pytest.raises(RuntimeError), output_folder.replaced(str(tmp_path / "n")):
        assert (tmp_path / "n" / "file").read_text() == kept
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["n"]
    write(tmp_path / "n", "newer")
    assert (tmp_path / "n" / "file").read_text() == "newer"


def test_two_at_once(tmp_path: Path) -> None:
    folder = str(tmp_path / "n")
    with output_folder.replaced(folder) as new:
        Path(new, "file").write_text("first")
        with pytest.raises(InputError, match=r"an export to .* is using it"), output_folder.replaced(folder):
            pass
    assert (tmp_path / "n" / "file").read_text() == "first"
