"""One training at a time in a workdir: who waits, and what is left behind."""

import errno
import fcntl
import threading
from pathlib import Path

import pytest

from bert_ft.errors import InputError
from bert_ft.train import lock
from bert_ft.train.lock import locked


def test_who_waits_says_so_and_goes_on_or_is_refused(tmp_path, monkeypatch, capsys):
    assert lock.WAITS_S > 90, "for so long an NFS server keeps the lock of a machine that is gone"
    workdir = tmp_path / "run"
    first = locked(workdir)
    first.__enter__()
    end = threading.Timer(0.2, lambda: first.__exit__(None, None, None))
    end.start()
    with locked(workdir):
        waited = capsys.readouterr().err
        assert workdir.exists(), "the first, whose it was, has removed it"
        assert waited.count("is training there; waiting 120 s for it") == 1
        monkeypatch.setattr(lock, "WAITS_S", 0.0)
        with pytest.raises(InputError) as refused, locked(workdir):
            pass
    line = str(refused.value)
    assert f"if its machine is gone, remove {workdir / '.lock'}" in line and "\n" not in line
    end.join()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_nothing_is_left_where_there_are_no_locks(tmp_path, monkeypatch, code):
    def flock(*given):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "new"):
        assert not list((tmp_path / "new").iterdir())
    assert not (tmp_path / "new").exists()
    held = tmp_path / ".lock"
    held.write_text("another machine, pid 1")
    with locked(tmp_path):
        assert held.exists()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EROFS])
def test_a_lock_that_can_not_be_removed_leaves_the_runs_own_error(tmp_path, monkeypatch, code):
    def unlink(*given, **options):
        raise OSError(code, "no longer")

    monkeypatch.setattr(Path, "unlink", unlink)
    with pytest.raises(InputError, match="the run's own"), locked(tmp_path):
        raise InputError("the run's own")
