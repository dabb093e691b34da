"""/ingest, /documents and /search: a tenant's documents."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.datastructures import UploadFile

from actors import DocumentIndex, InvalidArgument, ObjectNotFound
from deployments.documents import INDEX_NAME, Found, Ingested, NewDocument, source_of
from deployments.idempotency import Outcome
from deployments.ingress import replies
from deployments.ingress.access import Caller, guarded_by
from deployments.ingress.fields import Body, DocumentId, DocumentMetadata, Limit, Text, Title, TopK
from deployments.ingress.idempotency import IdempotencyKey, answer_once, described
from deployments.ingress.replies import reply
from deployments.ingress.services import services_of

ingesting = APIRouter(route_class=guarded_by("ingest", "ingest"), tags=["documents"])
router = APIRouter(route_class=guarded_by("ingest", "documents"), tags=["documents"])
searching = APIRouter(route_class=guarded_by("search", "search"), tags=["documents"])


#: With an Idempotency-Key the answer is kept, and what is kept together has a limit.
KEYED_DOCUMENTS_MAX = 200


class JsonDocument(Body):
    id: DocumentId | None = Field(default=None, description="stored in place of the document of the same id")
    title: Title | None = None
    text: Annotated[Text, Field(min_length=1)]
    metadata: DocumentMetadata = Field(default_factory=dict)


class JsonDocuments(Body):
    documents: Annotated[list[JsonDocument], Field(min_length=1)]


class NewSearch(Body):
    query: Annotated[Text, Field(min_length=1)]
    top_k: TopK | None = None
    filter: DocumentMetadata | None = Field(default=None, description="what a document's metadata must hold")


def _json_schema() -> dict[str, Any]:
    """Of `JsonDocuments`, without references: they would point into the schema of the API as a whole."""
    schema = JsonDocuments.model_json_schema()
    schema["properties"]["documents"]["items"] = schema.pop("$defs")["JsonDocument"]
    return schema


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}


@ingesting.post(
    "/ingest",
    response_model=replies.IngestedDocuments,
    responses=described(200),
    openapi_extra=_BODY,
)
async def ingest(request: Request, caller: Caller, key: IdempotencyKey) -> Response:
    """Stores documents given as JSON, or as files (text, Markdown, HTML, PDF) in a multipart form.

    One that fails keeps none of the others from being stored. With an Idempotency-Key the answer is kept unless a
    document failed for a reason that may pass: then the next request with the key tries again.
    """
    services = services_of(request)
    documents_max = services.config.ingest.documents_per_request_max
    if key is not None:
        documents_max = min(documents_max, KEYED_DOCUMENTS_MAX)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        documents = await _from_files(request, documents_max)
    else:
        documents = await _from_json(request, documents_max)

    async def work(_: str) -> Outcome:
        ingested: list[Ingested] = await services.ingest.store.remote(caller.tenant, documents)
        return Outcome(
            content={"documents": [one.shown() for one in ingested]},
            is_final=not any(one.retryable for one in ingested),
        )

    payload = [dataclasses.astuple(document) for document in documents]
    return await answer_once(request, caller, key, payload, status=200, work=work)


async def _from_files(request: Request, documents_max: int) -> list[NewDocument]:
    # Starlette refuses more files than that by itself, with a 400.
    async with request.form(max_files=documents_max, max_fields=documents_max) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise InvalidArgument("files", "", "holds no file")
        return [
            NewDocument(filename=file.filename or "document", content_type=file.content_type, data=await file.read())
            for file in files
        ]


async def _from_json(request: Request, documents_max: int) -> list[NewDocument]:
    try:
        body = JsonDocuments.model_validate_json(await request.body())
    except ValidationError as error:
        # Told like that of any other body, under the name that FastAPI gives it.
        errors: list[Any] = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(errors) from None
    if len(body.documents) > documents_max:
        raise InvalidArgument("documents", f"{len(body.documents)} documents", f"has more than {documents_max}")
    return [NewDocument(id=one.id, title=one.title, text=one.text, metadata=one.metadata) for one in body.documents]


@router.get("/documents", response_model=replies.DocumentList)
async def page(
    request: Request,
    caller: Caller,
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> Response:
    documents = services_of(request).objects.namespace(DocumentIndex).get(caller.tenant, INDEX_NAME)
    return reply(await documents.page(limit=limit, after=after))


@router.get("/documents/{document_id:path}", response_model=replies.Document)
async def read(request: Request, caller: Caller, document_id: str) -> Response:
    documents = services_of(request).objects.namespace(DocumentIndex).get(caller.tenant, INDEX_NAME)
    document = await documents.get(document_id)
    if document is None:
        raise ObjectNotFound(f"document {document_id}")
    return reply(document)


@router.delete("/documents/{document_id:path}", status_code=204)
async def remove(request: Request, caller: Caller, document_id: str) -> Response:
    """Removes a document from the index and the vectors."""
    if not await services_of(request).ingest.remove.remote(caller.tenant, document_id):
        raise ObjectNotFound(f"document {document_id}")
    return Response(status_code=204)


@searching.post("/search", response_model=replies.SearchResults)
async def search(request: Request, caller: Caller, body: NewSearch) -> Response:
    """Passages by words and by meaning, best first."""
    services = services_of(request)
    if len(body.query) > services.config.limits.query_chars_max:
        raise InvalidArgument("query", body.query, f"has more than {services.config.limits.query_chars_max} characters")
    found: Found = await services.search.find.remote(caller.tenant, body.query, top_k=body.top_k, where=body.filter)
    results = [{**source_of(passage), "metadata": passage["metadata"]} for passage in found.passages]
    return reply({"results": results, "cached": found.cached})
