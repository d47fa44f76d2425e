"""The tests of a file whose fixtures are made once go to one worker, so that they are made once; others to any."""

from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByFixture(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if has_a_shared_fixture(file) else nodeid

    return ByFixture(config, log)


@cache
def has_a_shared_fixture(file):
    """Whether a test file makes a fixture once for all of its tests. The process that schedules has nothing collected."""
    return 'scope="module"' in (HERE / file).read_text()
