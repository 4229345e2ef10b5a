"""`--threads`, and the note where other jobs use the cores."""

import time
from pathlib import Path

import pytest
import torch

from swiftmask.cli import COMMANDS, main, threads
from swiftmask.cli.threads import busy_line, cores, without_threads


@pytest.mark.parametrize("given", [["--threads", "1"], ["--threads=1"]])
def test_threads_are_taken_from_anywhere(given: list[str]) -> None:
    assert without_threads(["m", *given, "--num", "2"]) == (["m", "--num", "2"], 1)
    assert without_threads(["m"]) == (["m"], None)


@pytest.mark.parametrize("given", ["0", "-1", "nan", "1.5", "", "1000000"])
def test_impossible_numbers(given: str) -> None:
    with pytest.raises(ValueError, match="--threads takes a number from 1 to"):
        without_threads(["--threads", given])
    with pytest.raises(ValueError, match="got ''"):
        without_threads(["--threads"])


def test_a_command_computes_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    before = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as stop:
            main(["generate", str(tmp_path / "none"), "0", "--threads", str(cores())])
        assert stop.value.code == 2
        assert torch.get_num_threads() == cores()
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("load", "num_cores", "said"),
    [
        ("1.03 0.5 0.3 2/210 4711", 2, "1 running job on 2 cores (load 1.03)"),
        ("3.80 0.5 0.3 6/210 4711", 8, "try --threads 4"),
        ("9.00 9.0 9.0 11/210 4711", 2, "try --threads 1"),
        ("0.20 0.5 0.3 4/210 4711", 2, ""),  # just begun
        ("1.90 0.5 0.3 1/210 4711", 2, ""),  # has ended
        ("3.00 0.5 0.3 4/210 4711", 1, ""),  # there is one thread anyway
    ],
)
def test_when_the_machine_is_busy(load: str, num_cores: int, said: str) -> None:
    line = busy_line(load, num_cores)
    assert said in line
    assert bool(said) == bool(line)


def test_the_note_is_for_those_who_chose_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = tmp_path / "loadavg"
    load.write_text("3.00 3.00 3.00 9/210 4711\n")
    monkeypatch.setattr(threads, "_LOAD", load)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads.say_if_busy()
    assert "this machine is busy" in capsys.readouterr().err
    monkeypatch.setattr(threads, "_SECONDS_UNTIL_SAID", 0.05)
    threads.say_later_if_busy()
    assert capsys.readouterr().err == "", "a mistake is said first, alone"
    time.sleep(0.2)
    assert "this machine is busy" in capsys.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads.say_if_busy()
    assert capsys.readouterr().err == ""


def test_the_help_of_commands_that_compute_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        if name in ("models", "bench"):
            with pytest.raises(SystemExit):
                main([name, "--help"])
            assert ("--threads N" in capsys.readouterr().out) == command.computes
