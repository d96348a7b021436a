"""launch_tpu.sh against a recording stand-in for gcloud (gcloud_stand_in.py)."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gcloud_stand_in
import pytest
from conftest import ROOT

SCRIPT = ROOT / "launch_tpu.sh"
GIVEN = {
    "name": "my-run",
    "zone": "us-west4-a",
    "type": "v5litepod-16",
    "config": "configs/sentiment.py",
    "workdir": "gs://bucket/runs/a",
}


@dataclasses.dataclass
class Cloud:
    world: Path

    def plays(self, **scenario) -> None:
        (self.world / "scenario.json").write_text(json.dumps(scenario))

    def start(self, *words: str, verb: str = "", **given: str) -> subprocess.Popen:
        flags = [f"--{key}={value}" for key, value in (GIVEN | given).items()]
        path = f"{self.world / 'bin'}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "WORLD": str(self.world), "LAUNCH_POLL_S": "0"}
        return subprocess.Popen(
            ["bash", str(SCRIPT), *filter(None, [verb]), *flags, *words],
            env=environment,
            cwd=self.world,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell lets what it starts in the background ignore Ctrl-C, and it is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def launch(self, *words: str, answer: str = "", verb: str = "", **given: str) -> "Ended":
        process = self.start(f"--results={self.world / 'results'}", *words, verb=verb, **given)
        return ended(process, answer)

    @property
    def calls(self) -> list[list[str]]:
        path = self.world / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def made(self, verb: str) -> list[list[str]]:
        """The calls of 'tpu-vm create' and the like."""
        return [call for call in self.calls if " ".join(call[2:4]) == verb]

    @property
    def slice(self) -> str:
        path = self.world / "slice"
        return path.read_text() if path.exists() else "gone"


@dataclasses.dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def warned(self) -> bool:
        """Whether it says that the slice costs, and the command that deletes it, as its end."""
        last = self.err.strip().splitlines()[-2:]
        return "costs" in last[0] and bool(re.match(r"  gcloud compute tpus .* delete", last[-1]))


def ended(process: subprocess.Popen, answer: str = "") -> Ended:
    try:
        out, err = process.communicate(answer, timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("still running after a minute: " + "".join(process.communicate()))
    return Ended(process.returncode, out, err)


@pytest.fixture
def cloud(tmp_path):
    world = tmp_path / "world"
    for folder in ("bin", "image"):
        (world / folder).mkdir(parents=True)
    stand_in = Path(gcloud_stand_in.__file__)
    program = f'#!/bin/bash\nexec {sys.executable} -I -S {stand_in} "$@"\n'
    (world / "bin" / "gcloud").write_text(program)
    python = gcloud_stand_in.PYTHON.format(python=sys.executable, here=stand_in)
    (world / "image" / "python3").write_text(python)
    for file in (world / "bin" / "gcloud", world / "image" / "python3"):
        file.chmod(0o755)
    made = Cloud(world)
    made.plays()
    return made


def test_shellcheck():
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not checker:
        pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
    done = subprocess.run([checker, str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_success_from_creation_to_deletion(cloud):
    parts = '--config.task.parts={"a b": "c\'d"}'
    done = cloud.launch("--yes", "--", "--config.train.steps=3", parts)
    assert done.code == 0, done.err
    order = [" ".join(c[2:4]) for c in cloud.calls if c[:2] == ["compute", "tpus"]]
    wanted = ["tpu-vm accelerator-types", "tpu-vm versions", "tpu-vm create", "tpu-vm scp"]
    places = [order.index(verb) for verb in [*wanted, "tpu-vm ssh", "tpu-vm delete"]]
    assert places == sorted(places)
    [create] = cloud.made("tpu-vm create")
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"} <= set(create)
    assert "--zone=us-west4-a" in create and "--spot" not in create
    # Every worker got this checkout and was started once, its words unharmed by two shells.
    for home in homes_of(cloud):
        assert (home / "bert_ft/bert_ft/main.py").read_bytes() == (
            ROOT / "bert_ft/main.py"
        ).read_bytes()
        [words] = (home / "started").read_text().splitlines()
        assert words == (
            "-m bert_ft.main --config=configs/sentiment.py --workdir=gs://bucket/runs/a "
            f"--config.mesh.backend=tpu --config.train.steps=3 {parts}"
        )
    assert "training, start 1 of worker 0" in done.out and "worker 1" not in done.out
    [fetch] = [c for c in cloud.calls if c[:2] == ["storage", "rsync"]]
    assert fetch[-2:] == ["gs://bucket/runs/a", str(cloud.world / "results")]
    assert cloud.slice == "gone" and "costs" not in done.err


def test_what_is_fetched(cloud):
    cloud.launch(verb="fetch")
    [fetch] = [c for c in cloud.calls if c[:2] == ["storage", "rsync"]]
    [excluded] = [re.compile(w.partition("=")[2]) for w in fetch if w.startswith("--exclude=")]
    weights = ("best/1/a", "checkpoints/1/a", "trials/3/best/1/a", "group_1/checkpoints/1/a")
    assert all(map(excluded.match, weights))
    kept = ("result.json", "trials/3/predictions/best.jsonl", "group_1/metrics.jsonl", "the_best/a")
    assert not any(map(excluded.match, kept))


def test_results_that_cannot_be_fetched(cloud):
    cloud.plays(refuse={"storage rsync": "PERMISSION_DENIED"})
    done = cloud.launch(verb="fetch")
    assert done.code == 1 and "could not be fetched; they are in gs://bucket/runs/a" in done.err


@pytest.mark.parametrize(("extras", "wanted"), [("", ""), ("hf,parquet", ",hf,parquet")])
def test_extras_are_installed_beside_those_of_every_slice(cloud, extras, wanted):
    done = cloud.launch("--dry-run", verb="install", extras=extras)
    assert done.code == 0, done.err
    assert f'-e ".[tpu,gcs{wanted}]"' in done.err.replace("\\", "")


def homes_of(cloud):
    return [cloud.world / "workers" / str(i) for i in (0, 1)]


def test_dry_run_prints_each_command_and_runs_none(cloud):
    done = cloud.launch("--dry-run", "--queued", "--spot", zone="us-south1-ai1b")
    assert done.code == 0 and not cloud.calls
    printed = [line for line in done.err.splitlines() if line.startswith("+ ")]
    assert len(printed) == len(done.err.splitlines())
    for words in (
        "queued-resources create my-run --node-id=my-run",
        "--spot",
        "scp",
        "ssh my-run",
        "gcloud storage rsync",
        "queued-resources delete my-run",
    ):
        assert words in done.err, words
    assert not (cloud.world / "results").exists()


def test_preempted_and_saved_starts_again_on_the_same_slice(cloud):
    cloud.plays(runs=[{"codes": [75, 75]}, {"codes": [76, 75]}, {"codes": [0, 0]}])
    done = cloud.launch("--yes")
    assert done.code == 0, done.err
    assert len(cloud.made("tpu-vm create")) == 1
    assert len((cloud.world / "workers/0/started").read_text().splitlines()) == 3
    assert "start 3" in done.err and "gs://bucket/runs/a" in done.err


def test_sigterm_to_all_of_a_worker_keeps_the_code_that_the_program_ends_with(cloud):
    cloud.plays(runs=[{"seconds": 60, "codes": [75, 75]}, {"codes": [0, 0]}])
    process = cloud.start("--yes")
    logs = [home / "run.log" for home in homes_of(cloud)]
    wait_for(lambda: all(f.exists() and "training" in f.read_text() for f in logs), process)
    for home in homes_of(cloud):
        os.killpg(int((home / "run.pid").read_text()), signal.SIGTERM)
    done = ended(process)
    assert done.code == 0 and "preempted and saved (75)" in done.err, done.err
    assert "start 2 of worker 0" in done.out and len(cloud.made("tpu-vm create")) == 1


def test_restarts_have_an_end(cloud):
    cloud.plays(runs=[{"codes": [75, 75]}])
    done = cloud.launch("--restarts=1", "--keep")
    assert done.code == 1 and "gave up after 1 restarts" in done.err
    assert done.warned and cloud.slice == "READY"


@pytest.mark.parametrize("queued", [(), ("--queued",)], ids=["spot", "queued spot"])
def test_a_spot_slice_that_is_taken_is_made_anew(cloud, queued):
    cloud.plays(runs=[{"codes": [143, 143], "slice": "PREEMPTED"}, {"codes": [0, 0]}])
    done = cloud.launch("--spot", "--yes", *queued)
    assert done.code == 0, done.err
    kind = "queued-resources" if queued else "tpu-vm"
    assert len(cloud.made(f"{kind} create")) == 2
    assert all("--spot" in call for call in cloud.made(f"{kind} create"))
    assert len(cloud.made(f"{kind} delete")) == 2, "the remains, and the second slice at the end"
    assert "was taken away" in done.err and cloud.slice == "gone"
    starts = [c for c in cloud.made("tpu-vm scp") if "run.sh" in c[4]]
    assert len(starts) == 2


DYING = {"slice": "PREEMPTED", "answers": True}


@pytest.mark.parametrize(
    "run",
    [
        DYING | {"codes": [76, 143], "lost": 1, "seconds": 1, "says": ["READY", "READY"]},
        DYING | {"codes": [76, 76], "says": ["READY", "unknown"]},
        DYING | {"codes": [2, 2]},
        DYING | {"codes": [75, 75], "says": ["READY", "unknown", "READY"]},
        DYING | {"codes": [143, 143], "says": ["PREEMPTED", "unknown"]},
    ],
    ids=["one worker lost", "late", "at once", "saved", "unknown while it is made anew"],
)
def test_a_dying_spot_slice_is_made_anew_whatever_its_workers_end_with(cloud, run):
    cloud.plays(runs=[run, {"codes": [0, 0]}])
    done = cloud.launch("--spot", "--yes")
    assert done.code == 0 and "was taken away" in done.err, done.err
    assert len(cloud.made("tpu-vm create")) == 2 and cloud.slice == "gone"


def test_a_worker_that_does_not_answer_has_not_ended_well(cloud):
    cloud.plays(runs=[DYING | {"slice": "READY", "codes": [0, 0], "lost": 1, "seconds": 1}])
    done = cloud.launch("--yes")
    assert done.code == 1 and "one did not end" in done.err and done.warned


def test_lost_connections_are_counted_until_there_is_one_again(cloud):
    cloud.plays(follows=(["none"] * 4 + ["cut"]) * 2 + ["none", ""])
    done = cloud.launch("--yes")
    assert done.code == 0 and done.err.count("lost the connection") == 11, done.err
    assert cloud.slice == "gone"


def test_a_run_that_may_go_on_is_left_alone(cloud):
    cloud.plays(follows=["none"])
    done = cloud.launch("--yes")
    assert done.code == 1 and "the same command joins it" in done.err and done.warned
    assert cloud.slice == "READY" and not cloud.made("tpu-vm delete")


@pytest.mark.parametrize("there", [True, False])
def test_a_failing_installation_deletes_only_a_slice_that_was_made_for_it(cloud, there):
    if there:
        assert cloud.launch(verb="create").code == 0
    cloud.plays(refuse={"tpu-vm scp": "UNAVAILABLE"})
    done = cloud.launch("--yes")
    assert done.code == 1 and "can't copy to the workers" in done.err
    assert cloud.slice == ("READY" if there else "gone") and done.warned == there


@pytest.mark.parametrize("there", [True, False])
def test_a_spot_slice_that_is_taken_during_the_installation_is_made_anew(cloud, there):
    if there:
        assert cloud.launch("--spot", verb="create").code == 0
    cloud.plays(breaks={"pip install": ["PREEMPTED", ""]})
    done = cloud.launch("--spot", "--yes")
    assert done.code == 0 and "was taken away" in done.err, done.err
    assert len(cloud.made("tpu-vm create")) == 2 and cloud.slice == "gone"
    assert len(started(cloud)) == 1, "none before, none after"


def test_a_slice_that_is_taken_during_the_installation_is_no_spot_slice(cloud):
    cloud.plays(breaks={"pip install": ["PREEMPTED", ""]})
    done = cloud.launch("--yes")
    assert done.code == 1 and "no spot slice was asked for" in done.err
    assert len(cloud.made("tpu-vm create")) == 1


def test_a_replacement_whose_installation_fails_is_deleted(cloud):
    """It stands for a slice that was found, but was made."""
    assert cloud.launch("--spot", verb="create").code == 0
    refuse = {"tpu-vm scp": ["", "UNAVAILABLE"]}
    cloud.plays(breaks={"pip install": ["gone", ""]}, refuse=refuse)
    done = cloud.launch("--spot", "--yes", "--restarts=1")
    assert done.code == 1 and "gave up after 1 restarts" in done.err, done.err
    assert cloud.slice == "gone" and not done.warned


@pytest.mark.parametrize("state", ["STOPPED", "DELETING", "PREEMPTED", "REPAIRING"])
def test_a_slice_that_was_there_before_is_not_deleted(cloud, state):
    (cloud.world / "slice").write_text("READY" if state == "REPAIRING" else state)
    (cloud.world / "after.json").write_text(json.dumps({"says": [state] * 2}))
    for home in homes_of(cloud):
        home.mkdir(parents=True)
    cloud.plays(refuse={"tpu-vm scp": "UNAVAILABLE"})
    done = cloud.launch("--yes")
    assert done.code == 1 and state in done.err and done.warned, done.err
    assert cloud.slice != "gone" and not cloud.made("tpu-vm delete")


def test_a_request_that_was_there_before_is_not_deleted(cloud):
    (cloud.world / "queued").touch()
    cloud.plays(queue=["SUSPENDED"])
    done = cloud.launch("--queued", "--yes")
    assert done.code == 1 and "is SUSPENDED; delete it" in done.err and done.warned, done.err
    assert (cloud.world / "queued").exists()


def test_a_taken_slice_waits_for_capacity(cloud):
    taken = {"codes": [143, 143], "slice": "gone"}
    cloud.plays(runs=[taken, {"codes": [0, 0]}], create=[0, 1, 1, 0])
    done = cloud.launch("--spot", "--yes")
    assert done.code == 0 and "start 4" in done.err, done.err
    assert len(cloud.made("tpu-vm create")) == 4 and cloud.slice == "gone"
    (cloud.world / "create.count").unlink()
    (cloud.world / "starts-0").unlink()
    cloud.plays(runs=[taken], create=[0, 1])
    done = cloud.launch("--spot", "--restarts=2")
    assert done.code == 1 and "gave up after 2 restarts" in done.err and "costs" not in done.err


@pytest.mark.parametrize(
    ("words", "scenario"),
    [
        ([], {"breaks": {"tpu-vm create": ["", "CREATING", ""]}}),
        ([], {"breaks": {"tpu-vm create": ["", "READY", ""]}}),
        (
            ["--queued"],
            {
                "breaks": {"queued-resources create": ["", "gone", ""]},
                "queue": ["ACTIVE", "WAITING_FOR_RESOURCES", "ACTIVE"],
            },
        ),
        (["--queued"], {"queue": ["ACTIVE", "FAILED", "ACTIVE"]}),
        ([], {"refuse": {"tpu-vm delete": ["FAILED_PRECONDITION", ""]}}),
        ([], {"refuse": {"tpu-vm scp": ["", "", *["UNAVAILABLE"] * 5, ""]}}),
        ([], {"refuse": {"pip install": ["", "UNAVAILABLE", ""]}}),
    ],
    ids=["creating", "ready", "in line", "failed request", "deleting", "copies", "installation"],
)
def test_what_fails_on_the_way_to_a_new_slice_is_tried_again(cloud, words, scenario):
    cloud.plays(runs=[{"codes": [143, 143], "slice": "DELETING"}, {"codes": [0, 0]}], **scenario)
    done = cloud.launch("--spot", "--yes", *words)
    assert done.code == 0 and "start 3" in done.err and "start 4" not in done.err, done.err
    assert len(started(cloud)) == 1 and cloud.slice == "gone"


def started(cloud):
    """The starts on worker 0 of the last slice."""
    path = cloud.world / "workers/0/started"
    return path.read_text().splitlines() if path.exists() else []


def test_a_start_whose_answer_is_lost_may_train(cloud):
    cloud.plays(breaks={"setsid": ["READY"]}, runs=[{"seconds": 5}])
    done = cloud.launch("--yes")
    assert done.code == 1 and "could not be started" in done.err and done.warned
    assert started(cloud) and cloud.slice == "READY"


def test_a_start_that_gcloud_repeats_is_no_other_run(cloud):
    cloud.plays(repeats="setsid", runs=[{"seconds": 5}])
    done = cloud.launch("--yes")
    assert done.code == 0 and "another run" not in done.err, done.err
    assert len(started(cloud)) == 1 and cloud.slice == "gone"


def test_a_start_that_never_reached_the_workers_trains_nothing(cloud):
    cloud.plays(refuse={"tpu-vm scp": ["", "UNAVAILABLE"]})
    done = cloud.launch("--yes")
    assert done.code == 1 and "could not be started" in done.err and not done.warned
    assert not started(cloud) and cloud.slice == "gone"


def test_nothing_trains_on_a_slice_that_replaces_one_taken_before_the_start(cloud):
    assert cloud.launch(verb="create").code == 0
    copies = {"tpu-vm scp": ["", "PREEMPTED", ""]}
    cloud.plays(breaks=copies, refuse={"tpu-vm scp": ["", "", "UNAVAILABLE"]})
    done = cloud.launch("--spot", "--yes", "--restarts=1")
    assert done.code == 1 and "gave up after 1 restarts" in done.err, done.err
    assert cloud.slice == "gone" and not done.warned


def test_nothing_trains_on_a_new_slice_that_could_not_be_removed_at_once(cloud):
    refuse = {"tpu-vm delete": ["", "busy", ""], "tpu-vm scp": ["", "", "UNAVAILABLE"]}
    breaks = {"tpu-vm create": ["", "READY"]}
    cloud.plays(runs=[{"slice": "PREEMPTED", "codes": [2, 2]}], refuse=refuse, breaks=breaks)
    done = cloud.launch("--spot", "--yes", "--restarts=2")
    assert done.code == 1 and "there already; using it" in done.err, done.err
    assert cloud.slice == "gone" and not done.warned


def test_a_slice_that_is_no_spot_slice_is_not_made_anew(cloud):
    cloud.plays(runs=[{"codes": [143, 143], "slice": "gone"}])
    done = cloud.launch()
    assert done.code == 1 and "no spot slice was asked for" in done.err
    assert len(cloud.made("tpu-vm create")) == 1


def test_a_queued_resource_that_waits(cloud):
    cloud.plays(queue=["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = cloud.launch("--queued", "--yes")
    assert done.code == 0, done.err
    [create] = cloud.made("queued-resources create")
    assert "--runtime-version=v2-alpha-tpuv5-lite" in create
    assert done.err.count("WAITING_FOR_RESOURCES") == 1 and "PROVISIONING" in done.err
    [delete] = cloud.made("queued-resources delete")
    assert "--force" in delete


def test_a_queued_resource_that_fails(cloud):
    cloud.plays(queue=["WAITING_FOR_RESOURCES", "FAILED"])
    done = cloud.launch("--queued")
    assert done.code == 1 and "FAILED" in done.err and done.warned
    assert "queued-resources delete my-run --zone=us-west4-a --force" in done.err


def test_a_queued_resource_that_somebody_deleted(cloud):
    cloud.plays(queue=["WAITING_FOR_RESOURCES", "gone"])
    done = cloud.launch("--queued")
    assert done.code == 1 and "the queued resource is none" in done.err


def test_a_slice_whose_creation_ends_in_nothing_is_made(cloud):
    (cloud.world / "after.json").write_text('{"says": ["CREATING", "CREATING"]}')
    done = cloud.launch(verb="create")
    assert done.code == 0 and "is CREATING; waiting" in done.err, done.err
    assert cloud.slice == "READY"


def test_a_failing_creation_leaves_nothing_and_says_so(cloud):
    cloud.plays(create=[1])
    done = cloud.launch("--yes")
    assert done.code == 1 and "none is left behind" in done.err and "costs" not in done.err
    assert "no more capacity" in done.err and not cloud.made("tpu-vm scp")


def test_a_run_that_fails_is_not_started_again(cloud):
    cloud.plays(runs=[{"codes": [2, 2]}])
    done = cloud.launch(answer="n\n")
    assert done.code == 2 and "ended with 2" in done.err
    assert len((cloud.world / "workers/1/started").read_text().splitlines()) == 1
    assert done.warned and cloud.slice == "READY"


def test_a_refused_deletion(cloud):
    for answer in ("n\n", ""):  # nobody there is no yes either
        done = cloud.launch(answer=answer)
        assert done.code == 0 and "not deleted" in done.err and done.warned
        assert cloud.slice == "READY"
    done = cloud.launch(answer="y\n", verb="delete")
    assert done.code == 0 and cloud.slice == "gone" and "costs" not in done.err
    done = cloud.launch(answer="y\n", verb="delete")
    assert done.code == 0 and "there is no slice my-run" in done.err


@pytest.mark.parametrize("queued", [(), ("--queued",)], ids=["", "queued"])
def test_deletion_finds_a_request_in_line_and_a_slice_by_itself(cloud, queued):
    (cloud.world / "queued").touch()
    cloud.plays(queue=["WAITING_FOR_RESOURCES"])
    done = cloud.launch(*queued, verb="delete", answer="y\n")
    assert done.code == 0 and "WAITING_FOR_RESOURCES" in done.err, done.err
    assert len(cloud.made("queued-resources delete")) == 1
    assert not (cloud.world / "queued").exists() and "costs" not in done.err
    (cloud.world / "slice").write_text("READY")
    done = cloud.launch(*queued, verb="delete", answer="y\n")
    assert done.code == 0 and len(cloud.made("tpu-vm delete")) == 1 and cloud.slice == "gone"


@pytest.mark.parametrize("what", ["tpu-vm", "queued-resources"])
def test_a_deletion_that_can_not_see_what_is_there_says_so(cloud, what):
    cloud.plays(refuse={f"{what} describe": "UNAUTHENTICATED: log in"})
    done = cloud.launch(verb="delete")
    assert done.code == 1 and "nothing was deleted" in done.err and done.warned
    assert "UNAUTHENTICATED" in done.err and "there is no slice" not in done.err


@pytest.mark.parametrize("queued", [(), ("--queued",)], ids=["", "queued"])
def test_a_slice_is_deleted_where_requests_can_not_be_looked_for(cloud, queued):
    assert cloud.launch(*queued, verb="create").code == 0
    cloud.plays(refuse={"queued-resources describe": "Invalid choice: 'queued-resources'"})
    done = cloud.launch("--yes", *queued)
    assert done.code == 0 and "could not be looked for" in done.err, done.err
    assert cloud.slice == "gone" and "costs" not in done.err
    assert len(cloud.made("queued-resources delete")) == len(queued)


@pytest.mark.parametrize("what", ["tpu-vm", "queued-resources"])
def test_a_deletion_asks_again_where_gcloud_does_not_answer(cloud, what):
    assert cloud.launch(verb="create").code == 0
    cloud.plays(refuse={f"{what} describe": ["UNAVAILABLE", "UNAVAILABLE", ""]})
    done = cloud.launch(verb="delete", answer="y\n")
    assert done.code == 0 and "could not be looked for" not in done.err, done.err
    assert cloud.slice == "gone" and "costs" not in done.err


def test_a_deletion_that_fails_is_said(cloud):
    cloud.plays(refuse={"tpu-vm delete": "PERMISSION_DENIED"})
    done = cloud.launch("--yes")
    assert done.code == 1 and "could not be deleted" in done.err and done.warned


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_what_still_costs(cloud, number):
    cloud.plays(runs=[{"seconds": 60}])
    process = cloud.start("--yes")
    wait_for(lambda: "training" in log_of(cloud), process)
    os.killpg(process.pid, number)
    done = ended(process)
    os.killpg(int((cloud.world / "workers/0/run.pid").read_text()), signal.SIGKILL)
    os.killpg(int((cloud.world / "workers/1/run.pid").read_text()), signal.SIGKILL)
    assert done.code == 128 + number, done.err
    assert done.warned and "slice my-run in us-west4-a still runs and costs" in done.err
    assert cloud.slice == "READY", "an interruption deletes nothing, --yes or not"


def test_a_second_launch_joins_the_run_that_goes_on(cloud):
    cloud.plays(runs=[{"seconds": 15}])
    first = cloud.start("--keep")
    wait_for(lambda: "training" in log_of(cloud), first)
    os.killpg(first.pid, signal.SIGINT)
    ended(first)
    done = cloud.launch("--yes")
    assert done.code == 0 and "there already; using it" in done.err, done.err
    assert len(cloud.made("tpu-vm create")) == 1
    assert len((cloud.world / "workers/0/started").read_text().splitlines()) == 1


def test_a_second_launch_changes_nothing_beneath_the_run_that_goes_on(cloud):
    cloud.plays(runs=[{"seconds": 60, "codes": [75, 75]}, {"codes": [0, 0]}])
    first = cloud.start("--yes", "--", "--config.train.steps=3")
    logs = [home / "run.log" for home in homes_of(cloud)]
    wait_for(lambda: all(f.exists() and "training" in f.read_text() for f in logs), first)
    scripts = [(home / "run.sh").read_text() for home in homes_of(cloud)]
    for home in homes_of(cloud):
        (home / "bert_ft" / "old").touch()
    second = cloud.launch("--yes", "--", "--config.train.steps=4")
    assert second.code == 2 and "another run goes on" in second.err, second.err
    assert "bert_ft.main --config=configs/sentiment.py" in second.err.partition("another run")[2]
    assert "--config.train.steps=3" in second.err.partition("another run")[2]
    assert second.warned and cloud.slice == "READY"
    assert "nothing is installed there" in second.out
    assert [(home / "run.sh").read_text() for home in homes_of(cloud)] == scripts
    for home in homes_of(cloud):
        assert (home / "bert_ft" / "old").exists()
        os.killpg(int((home / "run.pid").read_text()), signal.SIGTERM)
    done = ended(first)
    assert done.code == 0 and "preempted and saved (75)" in done.err, done.err


def log_of(cloud):
    path = cloud.world / "workers/0/run.log"
    return path.read_text() if path.exists() else ""


def wait_for(condition, process):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.stderr.read()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "My_run"}, "--name='My_run'"),
        ({"name": "a" * 63}, "--name="),
        ({"zone": "us-west4"}, "--zone='us-west4'"),
        ({"zone": "us-west4-ai"}, "--zone='us-west4-ai'"),
        ({"type": "v5e-16"}, "--type='v5e-16'"),
        ({"type": "v5litepod-12"}, "sizes of v5litepod are 1 4 8"),
        ({"type": "v5p-12"}, "multiples of 8"),
        ({"version": "v2-alpha-tpuv6e"}, "is not of v5litepod; accepted: v2-alpha-tpuv5-lite"),
        ({"version": "latest"}, "--version='latest'"),
        ({"workdir": "runs/a"}, "accepted: gs://BUCKET/PATH"),
        ({"config": "configs/nosuch.py"}, "--config='configs/nosuch.py'"),
        ({"restarts": "many"}, "--restarts='many'"),
        ({"colour": "red"}, "--colour=red is no option"),
        ({"extras": "hf, parquet"}, "--extras='hf, parquet'"),
        (
            {"extras": "hf,parket"},
            "'parket' is no extra of setup.py; accepted: tpu cuda hf parquet",
        ),
    ],
)
def test_bad_words_are_told_before_gcloud_is_called(cloud, given, words):
    done = cloud.launch(**given)
    assert done.code == 2 and done.err.startswith("error: ") and words in done.err
    assert len(done.err.splitlines()) == 1 and not cloud.calls


def test_a_missing_gcloud_is_no_missing_slice(cloud, monkeypatch):
    programs = cloud.world / "bin"
    (programs / "gcloud").unlink()
    for name in ("bash", "dirname", "sed", "tr", "mktemp", "grep", "tail", "rm"):
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(programs))
    done = cloud.launch(verb="delete")
    assert done.code == 2 and "gcloud is not installed" in done.err


@pytest.mark.parametrize("key", ["train", "dev", "test", "candidates", "unlabelled"])
def test_data_that_does_not_travel_is_told_before_gcloud_is_called(cloud, key):
    parts = {"a": {f"data.{key}": "files:gs://b"}, "b": {f"data.{key}": "files:c"}}
    for words in (
        [f"--config.data.{key}=files:a.csv"],
        [f"--config.data.{key}=/a.csv"],
        [f"--config.data.{key}=files:gs://b?join=c.csv;on=id"],
        [f"-config.data.{key}", "files:/b?split=dev"],
        [f"--config.task.parts={json.dumps(parts)}"],
    ):
        done = cloud.launch("--", "--config.train.steps=3", *words)
        assert done.code == 2 and "=".join(words) in done.err and "files:gs://" in done.err
        assert len(done.err.splitlines()) == 1 and not cloud.calls


def test_data_that_all_workers_see(cloud):
    words = (
        *("--config.data.train=files:gs://b/a.csv", "--config.data.dev=pypi:a==1/a.csv"),
        *("--config.model.name=files:a", "--config.data.augment_words=gs://b/a.tsv"),
        *("--config.data.test=files:gs://b/a.csv?join=gs://b/c.csv;on=id", "--config.data.dev="),
        *("--config.model.pretrained=hf:a/b", "--config.resume=gs://b/runs/a", "--mode=eval"),
        *("--config.data.augment_paraphrases=my.own:paraphrase", "--config.data.augment_words="),
        '--config.task.parts={"a": {"data.train": "files:gs://b/a.csv", "data.label": "files:"}}',
    )
    done = cloud.launch("--dry-run", "--", *words)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.model.pretrained=/home/me/model", "gs://BUCKET/PATH, or for a model hf:NAME"),
        ("--config.model.adapter=./adapter", "gs://BUCKET/PATH"),
        ("--config.data.augment_model=/home/me/model", "gs://BUCKET/PATH, or for a model hf:NAME"),
        ("--config.model.tokenizer=vocab.txt", "gs://BUCKET/PATH, or for a model hf:NAME"),
        ("--config.resume=runs/old", "gs://BUCKET/PATH"),
        ("--config.methods.distil.teacher=runs/teacher", "gs://BUCKET/PATH"),
        ("--config.data.train=tfds:glue/sst2", "files:gs://BUCKET/PATH, pypi:, hf:"),
        ("--config.data.train=hf:glue/sst2", "needs --extras=hf"),
        ("--workdir=gs://other/y", "accepted: --config and --workdir before --"),
        ("--config=configs/qa.py", "accepted: --config and --workdir before --"),
        ("--config.mesh.backend=cpu", "accepted: --config and --workdir before --"),
    ],
)
def test_what_cannot_work_on_a_slice(cloud, flag, words):
    for given in ([flag], flag.split("=", 1)):
        done = cloud.launch("--", "--config.train.steps=3", *given)
        assert done.code == 2 and words in done.err and flag.partition("=")[0] in done.err
        assert len(done.err.splitlines()) == 1 and not cloud.calls


@pytest.mark.parametrize("key", ["augment_words", "augment_paraphrases"])
def test_words_and_paraphrases_that_do_not_travel(cloud, key):
    done = cloud.launch("--", f"--config.data.{key}", "../words.tsv")
    assert done.code == 2 and "only this checkout goes to the slice" in done.err
    assert f"--config.data.{key}=../words.tsv" in done.err and "gs://BUCKET/PATH" in done.err
    assert len(done.err.splitlines()) == 1 and not cloud.calls


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ("accelerator-types", "is not to be had in us-west4-a"),
        ("versions", "--version=v2-alpha-tpuv5-lite is not to be had"),
        ("buckets", "no such bucket"),
    ],
)
def test_what_the_cloud_does_not_know_is_told_before_creation(cloud, refused, words):
    cloud.plays(refuse={refused: "not found"})
    done = cloud.launch()
    assert done.code == 2 and words in done.err and "costs" not in done.err
    assert not cloud.made("tpu-vm create")


def test_an_answer_that_gcloud_does_not_give_is_no_missing_slice(cloud):
    cloud.plays(refuse={"tpu-vm describe": "UNAUTHENTICATED: log in"})
    done = cloud.launch()
    assert done.code == 1 and "UNAUTHENTICATED" in done.err and "nothing was made" in done.err
    assert not cloud.made("tpu-vm create")


def test_pinned_versions_are_in_the_ranges_of_setup():
    from packaging.requirements import Requirement

    text = (ROOT / "setup.py").read_text()
    ranges = [Requirement(found) for found in re.findall(r'"([a-z][\w\[\]-]*>=[^"]*)"', text)]
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints-tpu.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    pinned = [r for r in ranges if r.name in pins]
    assert {"jax", "flax", "optax", "orbax-checkpoint", "gcsfs"} <= {r.name for r in pinned}
    for requirement in pinned:
        assert pins[requirement.name] in requirement.specifier, requirement


def test_what_is_sent_can_be_installed(cloud):
    """setup.py reads README.md; bert_ft, configs and the pins are in the archive."""
    cloud.launch("--yes")
    with tarfile.open(cloud.world / "workers/0/bert_ft.tgz") as archive:
        names = archive.getnames()
    for name in ("setup.py", "README.md", "constraints-tpu.txt", "bert_ft/main.py"):
        assert name in names
    assert not [n for n in names if "__pycache__" in n]
