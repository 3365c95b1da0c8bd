"""Commands are forked from a server of their own, which no other test may meet."""

from multiprocessing import forkserver

import pytest


@pytest.fixture(scope="module", autouse=True)
def own_server():
    """The server of this process is started anew, for these tests and for those that follow."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()
