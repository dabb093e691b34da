"""Which parts make the service, and how are they joined?

`app` is what `serve run serve_app:app`, `serve deploy` and KubeRay run. Nothing imports this module.
"""

from __future__ import annotations

import functools
import os

from ray.serve import Application
from ray.serve.schema import LoggingConfig

import actors
from actors import ChatSession, Directory, DocumentIndex, KeyValue, LimitNews, TokenBucket, TokenUsage, TurnQueue
from actors.runtime import class_history
from actors.runtime.class_migration import ClassMigration
from actors.runtime.host_settings import HostSettings
from actors.runtime.placement import Cluster
from actors.runtime.slot import record_slots
from configs.class_migrations import load_class_history
from configs.loading import load_service, load_tenants
from configs.service import ServiceConfig
from configs.tenant import TenantConfig
from deployments import token_count, tools
from deployments.chat import ChatDeployment
from deployments.embedded_model import EmbeddedSettings
from deployments.embedding import EmbeddingDeployment
from deployments.extract import ExtractionLimits
from deployments.fast_http import PEER_HEADER_VARIABLE
from deployments.ingest import IngestDeployment
from deployments.ingress.deployment import IngressDeployment
from deployments.model import ModelDeployment
from deployments.search import SearchDeployment
from deployments.vectors import Vectors

CLASSES = (ChatSession, TokenBucket, KeyValue, DocumentIndex, Directory, TurnQueue, TokenUsage, LimitNews)


def cluster_of(config: ServiceConfig, tenants: dict[str, TenantConfig], history: tuple[ClassMigration, ...]) -> Cluster:
    """The objects' side of the configuration."""
    dedicated = {
        (tenant.tenant, durable_class.__name__)
        for tenant in tenants.values()
        for durable_class in CLASSES
        if tenant.placement.of(durable_class.__name__) == "dedicated"
    }
    return Cluster(
        data_dir=config.data_dir,
        classes=CLASSES,
        settings=HostSettings(
            slots=config.objects.slots,
            idle_after_s=config.objects.idle_after_s,
            resident_objects_max=config.objects.resident_objects_max,
            slow_turn_ms=config.objects.slow_turn_ms,
        ),
        hosts=config.objects.hosts,
        dedicated=frozenset(dedicated),
        dedicated_max=config.objects.dedicated_max,
        host_resource=config.objects.host_resource,
        history=history,
    )


def _log_of_requests(wanted: bool) -> LoggingConfig:
    """Whether Serve makes each request a line in its log. Where not, it logs warnings and errors alone: else it makes
    the line all the same, and drops it.
    """
    return LoggingConfig(enable_access_log=wanted, log_level="INFO" if wanted else "WARNING")


def build(
    config: ServiceConfig,
    tenants: dict[str, TenantConfig],
    history: tuple[ClassMigration, ...],
    peer_header: str | None,
) -> Application:
    """The whole service. Reads and writes nothing: the parts begin where they run."""
    # Each replica makes its own stubs, and whichever comes first starts the hosts.
    connect = functools.partial(actors.start, cluster_of(config, tenants, history))
    vectors = Vectors(path=str(config.data_dir / "vectors"), host_resource=config.objects.host_resource)
    uses_embedded_model = any(tenant.model.base_url is None for tenant in tenants.values())
    extraction = ExtractionLimits(
        size_bytes_max=config.limits.body_bytes_max,
        text_chars_max=config.ingest.text_chars_max,
        pdf_pages_max=config.ingest.pdf_pages_max,
        timeout_s=config.ingest.extract_timeout_s,
    )
    model = ModelDeployment.bind(embedded=EmbeddedSettings() if uses_embedded_model else None)
    embedding = EmbeddingDeployment.bind()
    retrieval = {tenant.tenant: tenant.retrieval for tenant in tenants.values()}
    search = SearchDeployment.bind(connect=connect, retrieval=retrieval, embedding=embedding, vectors=vectors)
    ingest = IngestDeployment.bind(connect=connect, limits=extraction, embedding=embedding, vectors=vectors)
    chat = ChatDeployment.bind(config=config, connect=connect, tenants=tenants, model=model, search=search)
    ingress = IngressDeployment.options(
        num_replicas=config.http.replicas, logging_config=_log_of_requests(config.http.access_log)
    )
    application: Application = ingress.bind(
        config=config,
        tenants=tenants,
        connect=connect,
        peer_header=peer_header,
        chat=chat,
        model=model,
        embedding=embedding,
        ingest=ingest,
        search=search,
    )
    return application


def check_data() -> None:
    """For whoever starts the service where its data is: raises what would keep the objects' hosts from starting.

    Raises:
        ClassesRefused: the history of classes does not fit the code or the data.
        InvalidArgument: the data was made with another number of slots.
    """
    record_slots(_config.data_dir, _config.objects.slots)
    class_history.check(_config.data_dir, _history, [durable_class.__name__ for durable_class in CLASSES])


_config = load_service(os.environ)
_history = load_class_history(_config)
_tenants = load_tenants(_config)
tools.check(_tenants, _config.tenants_dir)
token_count.check(_tenants, _config.tenants_dir)
app = build(_config, _tenants, _history, os.environ.get(PEER_HEADER_VARIABLE))
