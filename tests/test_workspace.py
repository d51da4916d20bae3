"""Outputs appear whole or not at all, and a changed byte is found."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from noise2next.errors import UserError
from noise2next.workspace import MANIFEST, digest, remove, require, verify, write_atomically, write_json, writing


def fill(folder, text):
    (folder / "deep").mkdir()
    (folder / "deep" / "a.txt").write_text(text)
    (folder / "b.txt").write_text(text)


def interrupted(folder):
    fill(folder, "new")
    raise KeyboardInterrupt


def test_a_folder_appears_whole_and_verifies(tmp_path):
    with writing(tmp_path / "out") as folder:
        fill(folder, "one")
        assert not (tmp_path / "out").exists()
    assert set(verify(tmp_path / "out")) == {"b.txt", "deep/a.txt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def test_a_failure_inside_leaves_the_old_folder_as_it_was(tmp_path):
    with writing(tmp_path / "out") as folder:
        fill(folder, "old")
    before = digest(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), writing(tmp_path / "out") as folder:
        interrupted(folder)
    assert digest(tmp_path / "out") == before
    assert verify(tmp_path / "out")


def test_a_second_write_replaces_every_file(tmp_path):
    for text in ("old", "new"):
        with writing(tmp_path / "out") as folder:
            fill(folder, text)
    assert (tmp_path / "out" / "b.txt").read_text() == "new"


def test_one_flipped_byte_is_found(tmp_path):
    with writing(tmp_path / "out") as folder:
        fill(folder, "one")
    (tmp_path / "out" / "b.txt").write_text("onf")
    with pytest.raises(UserError, match=r"b\.txt: its sha256"):
        verify(tmp_path / "out")


def test_a_missing_file_is_found(tmp_path):
    with writing(tmp_path / "out") as folder:
        fill(folder, "one")
    (tmp_path / "out" / "b.txt").unlink()
    with pytest.raises(UserError, match=r"b\.txt: missing"):
        verify(tmp_path / "out")


@pytest.mark.parametrize("damage", [b"garbage", b"\xff\xfe", b"[]", b"{}"])
def test_a_damaged_manifest_is_a_sentence_with_the_command_that_makes_it_again(tmp_path, damage):
    place = tmp_path / "artifacts" / "shop" / "train" / "ease"
    with writing(place) as folder:
        fill(folder, "one")
    (place / MANIFEST).write_bytes(damage)
    for read in (verify, digest):
        with pytest.raises(
            UserError, match=r"manifest\.json: damaged.*noise2next train --dataset shop --variant ease`"
        ):
            read(place)


def test_equal_content_has_an_equal_digest_and_other_content_another(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        with writing(tmp_path / name) as folder:
            fill(folder, text)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_require_names_the_command_that_makes_the_folder(tmp_path):
    with pytest.raises(UserError, match="noise2next prepare"):
        require(tmp_path / "nothing", "prepare")


def test_what_a_killed_writer_left_is_swept_by_the_next(tmp_path):
    writer = (
        "import sys, time; from pathlib import Path; from noise2next.workspace import writing\n"
        "with writing(Path(sys.argv[1])) as f:\n"
        "    (f / 'half').write_text('x'); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    with writing(tmp_path / "out") as folder:
        fill(folder, "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def test_a_removed_folder_is_gone_with_all_that_was_in_it(tmp_path):
    for name in ("old", "older"):
        with writing(tmp_path / name) as folder:
            (folder / "a.txt").write_text(name)
    remove(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["older"]
    assert verify(tmp_path / "older")


def test_a_sweep_leaves_the_folders_of_a_longer_name_alone(tmp_path):
    with writing(tmp_path / "ease") as folder:
        fill(folder, "one")
    others = tmp_path / ".ease-2@abandoned"
    others.mkdir()
    with writing(tmp_path / "ease") as folder:
        fill(folder, "two")
    assert others.is_dir()


def test_a_reader_finds_the_folder_at_every_moment_of_a_replacement(tmp_path):
    with writing(tmp_path / "out") as folder:
        fill(folder, "old")
    stop, missing = threading.Event(), []

    def look():
        while not stop.is_set():
            if not (tmp_path / "out").exists():
                missing.append(True)

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(100):
        with writing(tmp_path / "out") as folder:
            fill(folder, "new")
    stop.set()
    reader.join()
    assert not missing


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_replacement_is_whole_with_and_without_an_exchange_in_one_step(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr("noise2next.workspace._exchange", lambda one, other: False)
    for text in ("old", "new"):
        with writing(tmp_path / "out") as folder:
            fill(folder, text)
    assert (tmp_path / "out" / "b.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.lock", "out"]


def test_writers_at_once_leave_one_whole_folder(tmp_path):
    def write(number):
        for _ in range(20):
            with writing(tmp_path / "out") as folder:
                fill(folder, str(number))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verify(tmp_path / "out")
    assert (tmp_path / "out" / "b.txt").read_text() == (tmp_path / "out" / "deep" / "a.txt").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out-", ".out@"))]


def test_a_file_is_replaced_with_its_mode_kept(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a")
    os.chmod(path, 0o600)
    write_atomically(path, b"b")
    assert path.read_bytes() == b"b"
    assert path.stat().st_mode & 0o777 == 0o600


def test_equal_documents_are_equal_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1, "y": [2]})
    write_json(tmp_path / "b.json", {"y": [2], "x": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_manifest_lists_everything_but_itself(tmp_path):
    with writing(tmp_path / "out") as folder:
        fill(folder, "one")
    assert MANIFEST not in verify(tmp_path / "out")
