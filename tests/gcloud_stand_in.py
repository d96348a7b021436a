"""`gcloud` for test_launch.py: records its arguments and plays a scenario on two "workers", which
are directories on this machine in which the commands for them really run.

$WORLD/scenario.json:
  create  exit codes of the creations, one after the other (then 0)
  queue   states of the queued resource, one after the other (the last one stays); gone: deleted
  refuse  what gcloud itself refuses, by words of the command: {"accelerator-types": "not found"},
          or a list of such texts, one after the other (the last one stays, '' refuses nothing)
  breaks  what is done, but its answer is lost: by words of the command, a list of the slice's
          states after it ('' for an answer that arrives; the last one stays)
  repeats words of a command on the workers that runs twice: gcloud repeats it where ssh ends in 255
  follows of each connection to the log: 'cut' after a line, 'none' made, '' until the run's end
  runs    of each start: {"codes": [of worker 0, of worker 1], "slice": its state after,
          "seconds": how long, or until SIGTERM}; the last one repeats. "says": what is told
          of that state first; "answers": true where ssh works on, but for the worker "lost"
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

WORLD = Path(os.environ.get("WORLD", ""))
WORKERS = [WORLD / "workers" / "0", WORLD / "workers" / "1"]
AFTER = WORLD / "after.json"  # the plan of the run that changed the slice's state
SCENARIO = json.loads((WORLD / "scenario.json").read_text()) if "WORLD" in os.environ else {}

PYTHON = """#!/bin/bash
# stands for ~/venv/bin/python and, while the installation runs, for the image's python3
if [ "$2" = uv ] && [ "$3" = venv ]; then mkdir -p ~/venv/bin; cp "$0" ~/venv/bin/python; fi
[ "$2" = bert_ft.main ] || exit 0
echo "$@" >> ~/started
exec {python} -I -S {here} run
"""


def played(key: str, default, listed: list | None = None):
    """The next entry of a list, by default that of the scenario."""
    path = WORLD / f"{key}.count"
    count = int(path.read_text()) if path.exists() else 0
    path.write_text(str(count + 1))
    listed = SCENARIO.get(key, []) if listed is None else listed
    return listed[min(count, len(listed) - 1)] if listed else default


def slice_state(new: str | None = None) -> str:
    path = WORLD / "slice"
    if new is not None:
        path.write_text(new)
    return path.read_text() if path.exists() else "gone"


def after_run() -> dict:
    return {"says": [], "answers": False} | (
        json.loads(AFTER.read_text()) if AFTER.exists() else {}
    )


def described() -> str:
    after = after_run()
    if not after["says"]:
        return slice_state()
    AFTER.write_text(json.dumps(after | {"says": after["says"][1:]}))
    return after["says"][0]


def fail(text: str, code: int = 1) -> int:
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    return code


def run_on_worker() -> int:
    """What `python -m bert_ft.main` does in the scenario."""
    home = Path(os.environ["HOME"])
    number = int(home.name)
    with (WORLD / f"starts-{number}").open("a+") as file:
        file.write("one\n")
        file.seek(0)
        starts = len(file.readlines())
    runs = SCENARIO.get("runs", [{}])
    plan = runs[min(starts, len(runs)) - 1]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    print(f"training, start {starts} of worker {number}", flush=True)
    if plan.get("seconds"):
        signal.sigtimedwait([signal.SIGTERM], plan["seconds"])
    if number == 0 and "slice" in plan:
        AFTER.write_text(json.dumps(plan))
        slice_state(plan["slice"])
    return plan.get("codes", [0, 0])[number]


def on_workers(arguments: list[str]) -> list[Path]:
    which = next(a for a in arguments if a.startswith("--worker=")).partition("=")[2]
    return WORKERS if which == "all" else [WORKERS[int(which)]]


def closed() -> bool:
    return slice_state() != "READY" and not after_run()["answers"]


def ssh(arguments: list[str]) -> int:
    command = next(a for a in arguments if a.startswith("--command=")).partition("=")[2]
    code = 0
    follow = played("follows", "") if "tail " in command else ""
    if follow:
        print("a line of the log" if follow == "cut" else "", end="", flush=True)
        return fail("[/usr/bin/ssh] exited with return code [255].", 255)
    for home in on_workers(arguments):
        if closed() or home.name == str(after_run().get("lost")):
            code = fail("[/usr/bin/ssh] exited with return code [255].", 255)
            continue
        environment = os.environ | {"HOME": str(home), "PATH": f"{WORLD}/image:/usr/bin:/bin"}
        if SCENARIO.get("repeats", "\n") in command:
            subprocess.run(["bash", "-c", command], cwd=home, env=environment)
        done = subprocess.run(["bash", "-c", command], cwd=home, env=environment)
        code = code or done.returncode
    return fail("connection closed", 255) if closed() else code


def scp(arguments: list[str]) -> int:
    if slice_state() != "READY":
        return fail("[/usr/bin/scp] exited with return code [255].", 255)
    source, target = arguments[4], arguments[5].partition(":")[2]
    for home in on_workers(arguments):
        shutil.copy(source, home / target)
    return 0


def main(arguments: list[str]) -> int:
    with (WORLD / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    words = " ".join(arguments)
    for what, text in SCENARIO.get("refuse", {}).items():
        texts = text if isinstance(text, list) else [text]
        if what in words and (text := played(f"refuse {what}", "", texts)):
            return fail(text)
    code = answer(arguments)
    for what, states in SCENARIO.get("breaks", {}).items():
        if what in words and (state := played(f"breaks {what}", "", states)):
            slice_state(state)
            return fail("connection reset by peer")
    return code


def answer(arguments: list[str]) -> int:
    verb = " ".join(arguments[2:4])
    if verb in ("tpu-vm create", "queued-resources create"):
        if slice_state() != "gone":
            return fail("ALREADY_EXISTS: it is in use")
        if code := played("create", 0):
            return fail("There is no more capacity in the zone", code)
        AFTER.unlink(missing_ok=True)
        for home in WORKERS:  # a new machine has nothing on it
            shutil.rmtree(home, ignore_errors=True)
            home.mkdir(parents=True)
        if verb == "tpu-vm create":
            slice_state("READY")
        else:
            (WORLD / "queued").touch()
    elif verb in ("tpu-vm delete", "queued-resources delete"):
        slice_state("gone")
        (WORLD / "queued").unlink(missing_ok=True)
    elif verb == "tpu-vm describe":
        state = described()
        if state == "gone":
            return fail("NOT_FOUND: Resource 'projects/p/locations/z/nodes/n' was not found")
        if state == "unknown":
            return fail("UNAVAILABLE: try again")
        print(state)
    elif verb == "queued-resources describe":
        if not (WORLD / "queued").exists():
            return fail("NOT_FOUND: Resource was not found")
        state = played("queue", "ACTIVE")
        if state == "gone":
            (WORLD / "queued").unlink()
            return fail("NOT_FOUND: Resource was not found")
        if state == "ACTIVE":
            slice_state("READY")
        print(state)
    elif verb == "tpu-vm ssh":
        return ssh(arguments)
    elif verb == "tpu-vm scp":
        return scp(arguments)
    else:
        print("known")
    return 0


if __name__ == "__main__":
    sys.exit(run_on_worker() if sys.argv[1] == "run" else main(sys.argv[1:]))
