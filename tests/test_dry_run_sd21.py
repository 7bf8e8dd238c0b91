"""The dry run at sd21, see test_dry_run.py."""
from test_dry_run import dry_run, files  # noqa: F401  (a fixture)


def test_sd21(files, tmp_path, monkeypatch): dry_run('sd21', files, tmp_path, monkeypatch)  # noqa: F811
