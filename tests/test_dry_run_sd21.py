"""The dry run at sd21, see test_dry_run.py; the one at sd14 is in every test run, this one's result in the report of faults."""
import time

import pytest
from faults import record
from test_dry_run import dry_run, files  # noqa: F401  (a fixture)


@pytest.mark.long
def test_sd21(files, tmp_path, monkeypatch):  # noqa: F811
    begin = time.process_time()
    dry_run('sd21', files, tmp_path, monkeypatch)
    record('dry run of sd21', dict(profile='sd21', ended='Table 3 complete', seconds=round(time.process_time() - begin)))
