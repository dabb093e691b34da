"""Does the documentation of the API describe what is answered?"""

from __future__ import annotations

from actors import ObjectId
from actors.runtime.object_info import ObjectInfo
from deployments.ingress.replies import ManagedObject


def test_all_that_is_told_of_an_object_is_described() -> None:
    info = ObjectInfo(
        id=ObjectId("Notebook", "acme", "n1"),
        size_bytes=1,
        last_active_at=None,
        alarm_at=2.0,
        schema_version="m1",
        migrations=1,
        resident=True,
        quarantined=False,
    )
    assert ManagedObject.model_validate(info.plain()).model_dump() == info.plain()
