"""The default suite takes a sample of these tests; `make test-contract` takes all."""

import zlib
from pathlib import Path

import pytest

EVERY = 4
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        # The hook sees the items of the whole run. Names, unlike places in the list, are the same in every worker.
        if HERE in item.path.parents and zlib.crc32(item.nodeid.encode()) % EVERY:
            item.add_marker(pytest.mark.contract)
