"""Which identity may call which method; what is not in the table is refused."""

from collections.abc import Mapping
from types import MappingProxyType

from shared.identity import Identity

_EVERYONE = frozenset(Identity)
_PRODUCERS = frozenset({Identity.INGEST, Identity.REDACTION, Identity.INFERENCE, Identity.AUDIT, Identity.CONSOLE})
_READERS = frozenset({Identity.AUDITOR, Identity.OPERATOR, Identity.CONSOLE})
_GUARDIANS = frozenset({Identity.AUDITOR, Identity.CONSOLE})
_CALLERS = frozenset({Identity.PACS, Identity.OPERATOR, Identity.CONSOLE})
_INGEST = frozenset({Identity.INGEST})
_OPEN_INFERENCE = frozenset({Identity.OPERATOR, Identity.CONSOLE, Identity.INGEST, Identity.INFERENCE})
"""Those whom the settings may let ask the models themselves."""
_OPEN_INFERENCE_METHODS = frozenset(
    f"/inference.GRPCInferenceService/{name}"
    for name in (
        *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
        *("ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    )
)

METHODS: Mapping[str, frozenset[Identity]] = MappingProxyType(
    {
        "/stepwedge.audit.v1.AuditService/Append": _PRODUCERS,
        "/stepwedge.audit.v1.AuditService/AppendStream": _PRODUCERS,
        "/stepwedge.audit.v1.AuditService/GetEntry": _READERS,
        "/stepwedge.audit.v1.AuditService/QueryEntries": _READERS,
        "/stepwedge.audit.v1.AuditService/GetCheckpoint": _READERS | _INGEST,
        "/stepwedge.audit.v1.AuditService/GetInclusionProof": _READERS | _INGEST,
        "/stepwedge.audit.v1.AuditService/GetConsistencyProof": _READERS,
        "/stepwedge.audit.v1.AuditService/GetProof": _READERS,
        "/stepwedge.audit.v1.AuditService/RotateKey": frozenset({Identity.OPERATOR}),
        "/stepwedge.audit.v1.AuditService/Export": _READERS,
        "/stepwedge.audit.v1.AuditService/StreamEntries": _READERS,
        "/stepwedge.audit.v1.AuditService/EraseSubject": _GUARDIANS,
        "/stepwedge.audit.v1.AuditService/SetHold": _GUARDIANS,
        "/stepwedge.audit.v1.AuditService/ListHolds": _READERS,
        "/stepwedge.audit.v1.AuditService/Prune": _GUARDIANS | frozenset({Identity.OPERATOR}),
        "/stepwedge.audit.v1.AuditService/OpenIdentity": _GUARDIANS,
        "/stepwedge.audit.v1.AuditService/CheckLog": _READERS,
        "/stepwedge.redaction.v1.RedactionService/RedactInstance": _INGEST,
        "/stepwedge.inference.v1.InferenceService/AssessInstance": _INGEST,
        "/stepwedge.inference.v1.InferenceService/ListModels": _READERS | _INGEST,
        "/stepwedge.inference.v1.InferenceService/RecordRelease": frozenset({Identity.OPERATOR}),
        "/stepwedge.inference.v1.InferenceService/RenderObject": frozenset({Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/SubmitInstance": frozenset({Identity.PACS, Identity.OPERATOR}),
        "/stepwedge.ingest.v1.IngestService/GetUpload": frozenset({Identity.PACS, Identity.OPERATOR}),
        "/stepwedge.ingest.v1.IngestService/AnnounceStudy": frozenset({Identity.PACS, Identity.OPERATOR}),
        "/stepwedge.ingest.v1.IngestService/CompleteStudy": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/GetStudy": _CALLERS,
        "/stepwedge.ingest.v1.IngestService/ListStudies": _CALLERS,
        "/stepwedge.ingest.v1.IngestService/RequeueStudy": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/ReviewStudy": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/SummarizeDecisions": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/SummarizeMeasurements": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/SummarizeRepeats": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/SummarizeActivity": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/GetStorage": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/CheckConstancy": frozenset({Identity.OPERATOR}),
        "/stepwedge.ingest.v1.IngestService/GetPolicy": frozenset({Identity.OPERATOR, Identity.CONSOLE}),
        "/stepwedge.ingest.v1.IngestService/WatchDecisions": _CALLERS,
        "/stepwedge.ingest.v1.IngestService/ExplainStudy": _CALLERS,
        "/stepwedge.ingest.v1.TokenService/CreateToken": frozenset({Identity.OPERATOR}),
        "/stepwedge.ingest.v1.TokenService/ListTokens": frozenset({Identity.OPERATOR}),
        "/stepwedge.ingest.v1.TokenService/RevokeToken": frozenset({Identity.OPERATOR}),
        **dict.fromkeys(_OPEN_INFERENCE_METHODS, _OPEN_INFERENCE),
        "/grpc.health.v1.Health/Check": _EVERYONE,
        "/grpc.health.v1.Health/List": _EVERYONE,
        "/grpc.health.v1.Health/Watch": _EVERYONE,
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": frozenset({Identity.OPERATOR}),
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": frozenset({Identity.OPERATOR}),
    }
)
"""Full method name -> who may call it."""

OPEN_ENDED: frozenset[str] = frozenset(
    {
        # One for each producer's process, for as long as it lives; the producer bounds each batch.
        "/stepwedge.audit.v1.AuditService/AppendStream",
        "/stepwedge.ingest.v1.IngestService/WatchDecisions",
        "/grpc.health.v1.Health/Watch",
        # Held open by the tools for as long as a person explores; operators only.
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
"""Methods that may be called without a deadline, because they stay open by design; a drain ends them."""

DEADLINE_OPTIONAL: frozenset[str] = _OPEN_INFERENCE_METHODS
"""Methods of a contract that others wrote, whose clients name no deadline: a call without one gets
`shared.calling.DEFAULT_DEADLINE_SECONDS`."""

ALWAYS_ADMITTED: frozenset[str] = frozenset(
    {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch"}
)
"""Methods that the bound on concurrent calls does not count: a server at its limit is still healthy and must say so."""

TALLIED: frozenset[str] = frozenset({"/stepwedge.audit.v1.AuditService/Append"})
"""Methods called for every record of the cluster: those that succeed are counted into one line of the process's log
instead of bearing one each. Failures bear their own, and the metrics count every call."""

RETRIED: frozenset[str] = frozenset(
    {
        "/stepwedge.audit.v1.AuditService/GetEntry",
        "/stepwedge.audit.v1.AuditService/QueryEntries",
        "/stepwedge.audit.v1.AuditService/GetCheckpoint",
        "/stepwedge.audit.v1.AuditService/GetInclusionProof",
        "/stepwedge.audit.v1.AuditService/GetConsistencyProof",
        "/stepwedge.audit.v1.AuditService/GetProof",
        "/stepwedge.redaction.v1.RedactionService/RedactInstance",
        "/stepwedge.inference.v1.InferenceService/AssessInstance",
        "/stepwedge.inference.v1.InferenceService/ListModels",
        "/stepwedge.inference.v1.InferenceService/RenderObject",
        "/stepwedge.ingest.v1.IngestService/SummarizeDecisions",
        "/stepwedge.ingest.v1.IngestService/SummarizeMeasurements",
        "/stepwedge.ingest.v1.IngestService/SummarizeRepeats",
        "/stepwedge.ingest.v1.IngestService/SummarizeActivity",
        "/stepwedge.ingest.v1.IngestService/GetStorage",
        "/stepwedge.ingest.v1.IngestService/GetStudy",
        "/stepwedge.ingest.v1.IngestService/ListStudies",
        "/stepwedge.ingest.v1.IngestService/ExplainStudy",
    }
)
"""Idempotent methods that the channel itself tries again. Append is not among them: `shared.audit.Recorder` retries it
knowing what it sent; RequeueStudy is not idempotent; a health check is to tell how it is now."""
