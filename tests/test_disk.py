"""A disk that fills up or turns read-only under a run: a clear line, and the last good checkpoint.

A real one: a small tmpfs, mounted over the workdir's checkpoints in a namespace of the test's own.
"""

import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, Done, command, environment
from test_processes import OBSERVED

FLAGS = (
    "--config.train.steps=9",
    "--config.checkpoint.every_steps=3",
    "--config.model.dropout=0.1",
    "--config.eval.report=False",
)
UNSHARE = ["unshare", "--map-root-user", "--mount"]


def has_namespaces() -> bool:
    try:
        tried = subprocess.run([*UNSHARE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True)
    except FileNotFoundError:
        return False
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(not has_namespaces(), reason="no user namespaces to mount in")


def run(
    workdir, world, cache, *starts: str, flags=(), small="checkpoints", size="2m"
) -> list[Done]:
    """A run whose directory `small` has the `size`, started once for each of `starts`,
    which are the commands that the shell does at moments of it."""
    words = command(world.config, workdir, *FLAGS, *flags)
    program = shlex.join([sys.executable, *OBSERVED, *words[3:]])
    place = workdir / small
    place.mkdir(parents=True)
    script = [f"mount -t tmpfs -o size={size} x {place}"]
    for i, at in enumerate(starts):
        log = workdir.with_name(f"err-{i}.txt")
        script.append(f"OBSERVED_COMMANDS={shlex.quote(at)} {program} 2>{log}; echo $?")
        script.append(f"mount -o remount,rw {place}; rm -f {place}/fill")
        script.append(f"ls {place} > {workdir.with_name(f'ls-{i}.txt')}")
    done = subprocess.run(
        [*UNSHARE, "bash", "-c", "\n".join(script)], env=environment(cache), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, timeout=300, check=True,
    )  # fmt: skip
    codes = [int(line) for line in done.stdout.split() if line.isdigit()]
    return [
        Done(code, "", workdir.with_name(f"err-{i}.txt").read_text(), workdir)
        for i, code in enumerate(codes)
    ]


@pytest.fixture(scope="module")
def full(world, cache, tmp_path_factory) -> Done:
    """A run whose disk is full from the save of step 3 until step 5."""
    workdir = tmp_path_factory.mktemp("disk") / "run"
    fill = f"the save of step 3=dd if=/dev/zero of={workdir}/checkpoints/fill status=none"
    return run(workdir, world, cache, f"{fill}\nstep 5=rm {workdir}/checkpoints/fill")[0]


def test_full_for_a_while(full):
    """The run goes on without the checkpoint that had no room, and saves again once there is."""
    assert "checkpoints/3 was not saved: No space left on device" in full.ok().err
    assert "Traceback" not in full.err
    assert {"6", "9"} <= set(full.workdir.with_name("ls-0.txt").read_text().split())


def test_full_under_trials(world, cache, tmp_path):
    """Said to whoever watches, and to whoever reads the log."""
    fill = f"dd if=/dev/zero of={tmp_path}/run/checkpoints/fill status=none"
    at = f"the save of step 3={fill}\nstep 5=rm {tmp_path}/run/checkpoints/fill"
    flags = ('--config.trials={"seed": [0, 1]}',)
    done = run(tmp_path / "run", world, cache, at, flags=flags, size="4m")[0].ok()
    for said in (done.err, (tmp_path / "run" / "log.txt").read_text()):
        assert said.count("checkpoints/3 was not saved: No space left on device") == 1


def test_read_only_until_the_end(world, cache, tmp_path, full):
    place = f"{tmp_path}/run/checkpoints"
    there = f"while [ ! -d {place}/3 ]; do sleep 0.05; done"  # it is written beside the steps
    harm = f"the save of step 6={there}; mount -o remount,ro {place}"
    stopped, done = run(tmp_path / "run", world, cache, harm, "")
    line = stopped.refused("checkpoints/9 was not saved: Read-only file system; make room there")
    assert "\n" not in line
    assert "the last good one is that of step 3" in stopped.err
    assert (tmp_path / "ls-0.txt").read_text().split() == ["3"]
    assert "start: own checkpoint of step 3" in done.ok().err
    assert done.result["params_sha256"] == full.result["params_sha256"]


BEST = ("--config.eval.keep_best=True", "--config.eval.every_steps=3")


def test_no_room_for_a_best(world, cache, tmp_path):
    done = run(tmp_path / "run", world, cache, "", flags=BEST, small="best", size="100k")[0]
    line = done.refused("was not saved: No space left on device; make room there")
    assert "/best/" in line and "Traceback" not in done.err
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "WARNING" in log and "No space left on device" in log
