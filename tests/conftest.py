"""One thread for everything, set before anything is imported; tests marked slow run with --slow only."""

from __future__ import annotations

import os

# On a busy machine of few cores a second thread that spins costs more than it gives.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

from collections.abc import Iterator
from unittest import mock

import pytest

from graphprune.data import cache


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow (minutes, some 6 GB)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture(autouse=True, scope="session")
def _statistics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Statistics that another run kept would hide what changed since."""
    with mock.patch.object(cache, "folder", return_value=tmp_path_factory.getbasetemp() / "statistics"):
        yield
