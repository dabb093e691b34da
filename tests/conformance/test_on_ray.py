"""Does what holds in process hold on Ray? All that is promised everywhere, in a pool of hosts of one small cluster."""

from __future__ import annotations

import pytest

from actors.runtime.backend_ray import RayBackend, start
from actors.runtime.host_settings import HostSettings
from actors.runtime.placement import Cluster
from tests.conformance.classes import CLASSES, SETTINGS
from tests.conformance.support import Eventually, until
from tests.conformance.test_alarms import Alarms
from tests.conformance.test_calls import Calls
from tests.conformance.test_exactly_once import ExactlyOnce
from tests.conformance.test_interleaving import Interleaving
from tests.conformance.test_naming import Naming
from tests.conformance.test_overload import Mailboxes
from tests.conformance.test_storage import Deletion, KeyValues, Sql
from tests.conformance.test_transactions import Transactions
from tests.conformance.test_turns import Turns


@pytest.fixture(scope="module")
def cluster(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    data_dir = tmp_path_factory.mktemp("conformance") / "data"
    return Cluster(data_dir=data_dir, classes=CLASSES, settings=HostSettings(**SETTINGS), hosts=2)


@pytest.fixture
def backend(cluster: Cluster) -> RayBackend:
    return start(cluster)


@pytest.fixture
def eventually() -> Eventually:
    return until


class TestTurnsOnRay(Turns):
    pass


class TestTransactionsOnRay(Transactions):
    pass


class TestAlarmsOnRay(Alarms):
    pass


class TestExactlyOnceOnRay(ExactlyOnce):
    pass


class TestCallsOnRay(Calls):
    pass


class TestInterleavingOnRay(Interleaving):
    pass


class TestSqlOnRay(Sql):
    pass


class TestKeyValuesOnRay(KeyValues):
    pass


class TestDeletionOnRay(Deletion):
    pass


class TestNamingOnRay(Naming):
    pass


class TestMailboxesOnRay(Mailboxes):
    pass
