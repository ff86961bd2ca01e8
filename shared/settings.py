"""Every setting of the cluster: one TOML file, overridden by the environment.

An override is named by section and key: `STEPWEDGE_INGEST__LISTEN=0.0.0.0:7101`. Lists and objects are given as JSON.
Relative paths are resolved against the folder of the TOML file, or the working directory where there is none. A key
that does not exist is an error, never ignored.
"""

import ipaddress
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from shared import paths
from shared.errors import ErrorCode, StepwedgeError
from shared.identity import Identity
from shared.model_signatures import DEVELOPMENT_SIGNERS
from shared.transparency.cosignature import WitnessKey

PREFIX = "STEPWEDGE_"
FILE_VARIABLE = "STEPWEDGE_CONFIG"

ANY_TITLE = "*"
"""Stands for every calling AE title that is not named."""

_UNSET = Path()
_file: ContextVar[Path | None] = ContextVar("settings_file", default=None)

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
# PS3.5 6.2, AE: 16 characters at most of the default repertoire, no backslash and no control; no outer spaces here.
_AE_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")


def host_and_port(address: str) -> tuple[str, int]:
    """Split "host:port" or "[IPv6]:port"; the host comes back without brackets. Raises ValueError."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ValueError("must be host:port, with an IPv6 address in brackets")
    return match["host"].strip("[]"), int(match["port"])


def _endpoint(value: str) -> str:
    host_and_port(value)
    return value


def _optional_endpoint(value: str) -> str:
    return value and _endpoint(value)


def _ae_title(value: str) -> str:
    if not _AE_TITLE.fullmatch(value):
        raise ValueError("must be an AE title of 1 to 16 characters (PS3.5 6.2)")
    return value


def _network(value: str) -> str:
    return str(ipaddress.ip_network(value, strict=False))


def _base() -> Path:
    file = _file.get()
    return (file.parent if file else Path.cwd()).resolve()


def _database_url(value: str) -> str:
    for scheme in ("sqlite:///", "sqlite+pysqlite:///"):
        file = value.removeprefix(scheme)
        if file != value and file and not file.startswith(("/", ":memory:", "file:")):
            return f"{scheme}{_absolute(Path(file))}"
    return value


def _absolute(value: Path) -> Path:
    # What is left unset is filled in by Settings, which knows the folder of the data.
    return value if value == _UNSET else _base() / value.expanduser()


Endpoint = Annotated[str, AfterValidator(_endpoint)]
OptionalEndpoint = Annotated[str, AfterValidator(_optional_endpoint)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Network = Annotated[str, AfterValidator(_network)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url), Field(repr=False)]
File = Annotated[Path, AfterValidator(_absolute)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A table of the TOML file."""

    model_config = ConfigDict(extra="forbid", frozen=False, validate_default=True, use_attribute_docstrings=True)


class Cluster(Section):
    """What all services share."""

    production: bool = False
    """Refuse development certificates and development keys."""
    data: File = Path("var")
    """Folder of everything the cluster writes, unless another setting says otherwise."""
    pki: File = _UNSET
    """Folder of the CA's certificate and of each identity's certificate and key; default <data>/pki."""
    keys: File = _UNSET
    """Folder of the pseudonym key and of the log's signing key; default <data>/keys."""
    names: list[str] = ["localhost"]
    """DNS names and IP addresses under which the services are reached; minted into their certificates."""


class Objects(Section):
    """Where objects lie."""

    kind: Literal["directory", "s3"] = "directory"
    """A folder for each zone, or an S3-compatible store (its credentials come from the usual AWS_* variables)."""
    original: str = ""
    """Zone `original`: a path, or s3://bucket/prefix; default <data>/objects/original."""
    deidentified: str = ""
    """Zone `deidentified`: a path, or s3://bucket/prefix; default <data>/objects/deidentified."""
    low_water_bytes: Annotated[int, Field(ge=0)] = 268_435_456
    """Bytes that must stay free in a zone's file system; below it nothing is taken in."""
    scratch: File = _UNSET
    """Folder where objects wait while they are received, where kind is s3; default <data>/objects/scratch."""
    s3_endpoint: str = ""
    """URL of the S3-compatible store; empty for the provider's own."""
    s3_region: str = ""
    """Region of the bucket; empty for the library's default."""
    s3_ca: str = ""
    """File of the CA certificates that the store's certificate is checked against; empty for the system's."""

    @model_validator(mode="after")
    def _places_fit_the_kind(self) -> Self:
        for zone in ("original", "deidentified"):
            place: str = getattr(self, zone)
            if self.kind == "s3" and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\s]*)?", place):
                raise ValueError(f"{zone} must be s3://bucket/prefix where kind is s3")
            if self.kind == "directory":
                if place.startswith("s3://"):
                    raise ValueError(f"{zone} must be a path where kind is directory")
                if place:
                    setattr(self, zone, str(_absolute(Path(place))))
        if self.s3_ca:
            self.s3_ca = str(_absolute(Path(self.s3_ca)))
        return self


class Service(Section):
    """What every service has."""

    listen: Endpoint
    """Where gRPC is served, host:port; port 0 for any free one."""
    address: OptionalEndpoint = ""
    """Where the others reach it, host:port; default `listen`."""
    metrics: OptionalEndpoint = ""
    """Where Prometheus metrics are served, host:port; empty for nowhere."""
    max_concurrent_rpcs: Positive = 64
    """Calls in progress beyond which the next is refused as OVERLOADED."""
    workers: Positive = 1
    """Processes or threads that do the service's heavy work side by side."""

    @model_validator(mode="after")
    def _is_reached_where_it_listens(self) -> Self:
        if not self.address:
            host, port = host_and_port(self.listen)
            everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - the name of it, not a bind
            self.address = f"{everywhere[host]}:{port}" if host in everywhere else self.listen
        return self


VerdictName = Literal["ACCEPT", "REVIEW", "REJECT"]
Content = Literal["original", "seg", "sr", "pdf"]
"""What a destination can get of a study: the objects as received, and the results that are made of a decision."""
RouteName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Contents = Annotated[list[Content], Field(min_length=1)]


class Destination(Section):
    """A peer that decided studies go to: by C-STORE (`ae_title`, `host`, `port`) or by STOW-RS (`url`)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
    """What the records call it."""
    ae_title: Annotated[str, AfterValidator(lambda value: value and _ae_title(value))] = ""
    """Called AE title."""
    host: str = ""
    """Host name or IP address."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port."""
    url: Annotated[str, Field(pattern=r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$")] = ""
    """DICOMweb service root, "https://pacs.example/dicom-web"; /studies comes behind it (PS3.18 10.5)."""
    tls: bool = False
    """C-STORE over mutual TLS (PS3.15 B.9); a `url` says it by its scheme."""
    tls_ca: File = _UNSET
    """CA certificates, one of which must have signed the peer's certificate, PEM; for a `url` default the system's."""
    tls_certificate: File = _UNSET
    """Certificate that we show the peer, with its chain, PEM; a `url` need not ask for one."""
    tls_key: File = _UNSET
    """Its private key, PEM."""
    tls_name: str = ""
    """Name in the peer's certificate; default its host."""
    token_file: File = _UNSET
    """File with the bearer token for a `url`; read anew for every association, so that it can be replaced."""
    clear_text: bool = False
    """Whether a `url` with http:// may be of another machine: patients' images then cross the network unprotected."""
    verdicts: list[VerdictName] = ["ACCEPT"]
    """Verdicts with which a study goes there, where no route names the destination."""
    send: Contents = ["original"]
    """What it gets of the study, where no route names the destination."""

    @model_validator(mode="after")
    def _is_reached_in_one_way(self) -> Self:
        dimse = (self.ae_title, self.host, self.port)
        if bool(self.url) == any(dimse) or (not self.url and not all(dimse)):
            raise ValueError("a destination has either ae_title, host and port, or url")
        if (self.tls_certificate == _UNSET) != (self.tls_key == _UNSET):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls and (self.url or _UNSET in (self.tls_ca, self.tls_certificate)):
            raise ValueError("tls is for C-STORE, and needs tls_ca, tls_certificate and tls_key")
        if self.token_file != _UNSET and not self.url.startswith("https://"):
            raise ValueError("a token is sent over https alone")
        if self.url.startswith("http://") and not self.clear_text and not _is_loopback(_host_of(self.url)):
            raise ValueError("a url with http:// is a loopback address, unless clear_text says that it may be another")
        return self


class Route(Section):
    """A rule of what goes where. Every list that is not empty must hold one of what the study has."""

    name: RouteName
    """What records and explanations call it."""
    destinations: Annotated[list[str], Field(min_length=1)]
    """Names of the destinations."""
    send: Contents = ["original"]
    """What they get of the study."""
    verdicts: list[VerdictName] = []
    """Verdict of the study."""
    modalities: list[str] = []
    """Modality (0008,0060) of one of its images."""
    sites: list[str] = []
    """Site of one of its images, as `sites` names it."""
    stations: list[str] = []
    """Station Name (0008,1010) of one of its images."""
    calling_ae_titles: list[AeTitle] = []
    """AE title under which one of its images was sent."""
    called_ae_titles: list[AeTitle] = []
    """AE title of ours to which one of its images was sent."""
    reasons: list[str] = []
    """Code of one of the reasons of the verdict, "LUNG_MARGIN_TOP"."""


class Results(Section):
    """The results that are made of each decision."""

    keep: list[Literal["seg", "sr", "pdf"]] = []
    """Made of every decision, also where no destination gets them: they can be had through the DICOMweb door."""
    dciodvfy: bool = True
    """Hold each against its IOD with dciodvfy (dicom3tools) before it may leave, beside reading it back."""


Code = Annotated[str, Field(pattern=r"^[A-Z0-9][A-Z0-9 _.-]{0,15}$")]
"""A code of an attribute, in capitals."""


class Need(Section):
    """Images that a complete study has."""

    views: list[Code] = []
    """View Position (0018,5101), one of these; LATERAL stands for every lateral one. Empty for any."""
    modalities: list[Code] = []
    """Modality (0008,0060), one of these; empty for any."""
    at_least: Positive = 1
    """How many such images."""


class RequiredSeries(Section):
    """What the studies must have that a rule holds for; every list that is not empty must fit one of their images."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    """What records and explanations call it."""
    modalities: list[Code] = []
    body_parts: list[Code] = []
    """Body Part Examined (0018,0015)."""
    procedures: list[Code] = []
    """Code Value of the Procedure Code Sequence (0008,1032) or of the Requested Procedure Code Sequence (0032,1064)."""
    needs: Annotated[list[Need], Field(min_length=1)]
    """All of these."""


class Completion(Section):
    """When a study is complete, beside being quiet."""

    wait_seconds: Seconds = 900.0
    """How long a study waits, from its last image on, for what was announced or a rule asks for; then it is decided
    with the reason INCOMPLETE."""
    counts: bool = True
    """Whether numbers in the images count: Number of Study Related Series and Instances (0020,1206 and 1208), Number of
    Series Related Instances (0020,1209)."""
    required: list[RequiredSeries] = []
    """Rules of the site."""

    @field_validator("required")
    @classmethod
    def _rules_differ(cls, value: list[RequiredSeries]) -> list[RequiredSeries]:
        if len({rule.name for rule in value}) < len(value):
            raise ValueError("two rules bear one name")
        return value


class CommitmentPeer(Section):
    """A DICOM peer that asks for storage commitment."""

    ae_title: AeTitle
    """Its AE title, as it calls us and as we call it."""
    host: Annotated[str, Field(min_length=1)]
    """Host name or IP address."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """TCP port."""


class DicomWeb(Section):
    """The DICOMweb door (PS3.18): STOW-RS, QIDO-RS and WADO-RS, for whoever brings a bearer token."""

    listen: OptionalEndpoint = ""
    """Where HTTPS is served, host:port; empty for nowhere."""
    tls: bool = True
    """False for plain HTTP, which is served on a loopback address alone: for a proxy on the same machine, and tests."""
    certificate: File = _UNSET
    """Certificate that the door shows, with its chain, PEM; default that of the identity `ingest`."""
    key: File = _UNSET
    """Its private key, PEM."""
    client_ca: File = _UNSET
    """CA certificates, PEM, one of which must have signed the certificate of whoever calls; unset for none asked."""
    url: Annotated[str, Field(pattern=r"^(https?://[^\s?#]+[^\s?#/])?$")] = ""
    """How clients reach the root of the service, for Retrieve URLs; default https:// and `listen`, with /dicom-web."""
    max_request_bytes: Positive = 17_179_869_184
    """Longest body of one store request; more comes in further requests."""
    max_requests: Positive = 16
    """Requests in progress beyond which the next is told to come back later (503)."""
    max_results: Annotated[int, Field(gt=0, le=10_000)] = 1000
    """Matches in one answer of a search at most; more are asked for with `offset`."""
    idle_seconds: Seconds = 60.0
    """A body of which nothing came for so long is given up."""

    @model_validator(mode="after")
    def _is_secure(self) -> Self:
        if not self.listen:
            return self
        host, _ = host_and_port(self.listen)
        if not self.tls and not _is_loopback(host):
            raise ValueError("without tls it is served on a loopback address alone")
        if (self.certificate == _UNSET) != (self.key == _UNSET):
            raise ValueError("certificate and key belong together")
        self.url = self.url or f"{'https' if self.tls else 'http'}://{self.listen}/dicom-web"
        return self


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Ingest(Service):
    """The front door."""

    listen: Endpoint = "127.0.0.1:7101"
    metrics: OptionalEndpoint = "127.0.0.1:9101"
    workers: Positive = 2
    database: DatabaseUrl = ""
    """SQLAlchemy URL; default an SQLite file in the data folder."""
    dimse: OptionalEndpoint = "127.0.0.1:11112"
    """Where DICOM associations are accepted, host:port; empty for nowhere but `dimse_tls`."""
    dimse_tls: OptionalEndpoint = ""
    """Where DICOM associations over mutual TLS are accepted, host:port (PS3.15 B.9; usually port 2762)."""
    dimse_tls_certificate: File = _UNSET
    """Certificate that the door shows there, with its chain, PEM."""
    dimse_tls_key: File = _UNSET
    """Its private key, PEM."""
    dimse_tls_ca: File = _UNSET
    """CA certificates, one of which must have signed the certificate of whoever calls there, PEM."""
    ae_title: AeTitle = "STEPWEDGE"
    """Own AE title."""
    check_called_ae_title: bool = False
    """Reject associations that call another AE title than `ae_title` and `other_ae_titles`."""
    other_ae_titles: list[AeTitle] = []
    """Further AE titles that the door answers to."""
    calling_ae_titles: list[AeTitle] = []
    """Calling AE titles that are let in; empty for any."""
    calling_networks: dict[str, list[Network]] = {}
    """Networks (10.1.2.0/24) from which a calling AE title is let in; under "*" for all titles that are not named."""
    dimse_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that speak DICOM with senders; 0 for one a core, four at most."""
    max_associations: Positive = 32
    """Associations open at once, of all of them."""
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1 << 20)] = 1 << 18
    """Longest P-DATA-TF PDU taken, announced to the sender (PS3.8 D.1)."""
    commitment_peers: list[CommitmentPeer] = []
    """Where the outcome of a storage commitment is sent, if the association that asked is gone."""
    max_object_bytes: Positive = 2_147_483_648
    """Largest object taken, bytes."""
    dicomweb: DicomWeb = Field(default_factory=lambda: DicomWeb())
    """The DICOMweb door; off unless it has an address."""
    seal_identities: bool = False
    """Seal who an object is about beside its record in the log, so that an auditor can be told, each time on the record
    (`stepwedge log identify`). Off: there is no way back from a pseudonym; records are still found by a number."""
    quiet_seconds: Seconds = 10.0
    """A study is complete when nothing arrived for it for so long."""
    completion: Completion = Completion()
    """What a study waits for beyond that."""
    lease_seconds: Seconds = 60.0
    """How long a claimed study stays with a worker that does not renew its claim."""
    max_attempts: Positive = 5
    """Attempts at a step that fails transiently before the study goes to the dead letter."""
    policy: File = paths.POLICY
    """TOML file of the policy."""
    destinations: list[Destination] = []
    """Where decided studies are forwarded."""
    routes: list[Route] = []
    """What goes to which destination; a destination that no route names follows its own `verdicts` and `send`."""
    results: Results = Results()
    """What is made of each decision."""
    shadow: bool = False
    """Decide and record, and send nothing to any destination; the records of the deliveries say so."""
    sites: dict[str, Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]] = {}
    """Station Name (0008,1010) or calling AE title -> site, to which rules of the policy can be bound; under "" that of
    all that are not named."""
    rooms: dict[str, Annotated[str, Field(max_length=64)]] = {}
    """Station Name (0008,1010) or calling AE title -> the room that lists and charts show; else the Performed Location
    (0040,0243) of the images is taken."""

    @model_validator(mode="after")
    def _has_a_dicom_door(self) -> Self:
        if not self.dimse and not self.dimse_tls:
            raise ValueError("dimse and dimse_tls cannot both be empty")
        files = (self.dimse_tls_certificate, self.dimse_tls_key, self.dimse_tls_ca)
        if self.dimse_tls and _UNSET in files:
            raise ValueError("dimse_tls needs dimse_tls_certificate, dimse_tls_key and dimse_tls_ca")
        for title in self.calling_networks:
            if title != ANY_TITLE:
                _ae_title(title)
        return self

    @field_validator("destinations")
    @classmethod
    def _names_differ(cls, value: list[Destination]) -> list[Destination]:
        if len({destination.name for destination in value}) < len(value):
            raise ValueError("two destinations bear one name")
        return value

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> Self:
        known = {destination.name for destination in self.destinations}
        for route in self.routes:
            if not known.issuperset(route.destinations):
                raise ValueError("a route names a destination that is not in the settings")
        if len({route.name for route in self.routes}) < len(self.routes):
            raise ValueError("two routes bear one name")
        return self


class Redaction(Service):
    """The service that takes identity out."""

    listen: Endpoint = "127.0.0.1:7102"
    metrics: OptionalEndpoint = "127.0.0.1:9102"
    profile: str = "basic-pixels"
    """What is taken out: the name of a profile that ships (`services/redaction/profiles`), or the file of one. Of those
    that ship only `basic-pixels` and `research-release` clean pixels too."""
    profile_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Digest that the compiled profile must have, as receipts state it; the service refuses to start with another."""


class ModelSigners(Section):
    """Ed25519 public keys, base64, whose signatures release a model (`python -m distillation keys` makes a pair)."""

    trained_by: list[str] = list(DEVELOPMENT_SIGNERS["trained_by"])
    """Of those who train."""
    approved_by: list[str] = list(DEVELOPMENT_SIGNERS["approved_by"])
    """Of those who approve; a key that stands in both lists counts in neither."""

    @property
    def by_role(self) -> dict[str, list[str]]:
        """The keys by role, as `shared.model_signatures.lacking` takes them."""
        return {"trained_by": self.trained_by, "approved_by": self.approved_by}


class RemoteModel(Section):
    """A server that holds the model and is asked by the Open Inference Protocol (Triton, KServe, another cluster)."""

    address: OptionalEndpoint = ""
    """Where it serves gRPC over TLS, host:port."""
    model: str = ""
    """What the model is called there; default the release's name."""
    version: str = ""
    """Its version there; empty for the one that the server chooses."""
    server_name: str = ""
    """Name that its certificate must hold; default the host of `address`."""
    ca: File = _UNSET
    """CA certificates that its certificate is checked against, PEM; default the cluster's."""
    certificate: File = _UNSET
    """What we show there, PEM; default the certificate of inference."""
    key: File = _UNSET
    """Its private key, PEM."""
    timeout_seconds: Seconds = 10.0
    """How long it may take to answer."""


class OpenInference(Section):
    """The models themselves over the Open Inference Protocol, beside the service."""

    callers: list[Identity] = [Identity.OPERATOR, Identity.INFERENCE]
    """Who may ask; empty for nobody."""
    models: list[File] = []
    """Folders of further releases that are served there, side by side with `model`."""


class DynamicBatching(Section):
    """Images that several calls bring are run together; the words are Triton's."""

    max_batch_size: Annotated[int, Field(ge=1, le=64)] = 1
    """Images in one run at most; 1 for none together. A processor gains nothing by it."""
    preferred_batch_size: list[Annotated[int, Field(ge=1, le=64)]] = []
    """Sizes at which nothing more is waited for."""
    max_queue_delay_microseconds: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """How long an image may wait for company."""
    max_queue_size: Annotated[int, Field(ge=0)] = 0
    """Calls that may wait; a further one is refused as OVERLOADED. 0 for any number."""

    @model_validator(mode="after")
    def _preferred_sizes_fit(self) -> Self:
        if any(size > self.max_batch_size for size in self.preferred_batch_size):
            raise ValueError("preferred_batch_size holds a size above max_batch_size")
        return self


class Shadow(Section):
    """A candidate that looks at images after the served model has answered; its answers are recorded, never used."""

    model: File = _UNSET
    """Folder of the candidate's release; unset for none."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the images that it looks at, chosen by their digest."""
    waiting: Positive = 16
    """Images that may wait for it; what comes beyond is left out and counted."""


class Inference(Service):
    """The service that measures pixels."""

    listen: Endpoint = "127.0.0.1:7103"
    metrics: OptionalEndpoint = "127.0.0.1:9103"
    model: File = paths.MODEL
    """Folder of the released model."""
    model_signers: ModelSigners = ModelSigners()
    """Whose releases are loaded; by default the development keys of the shipped model."""
    backend: Literal["onnxruntime", "torch", "open-inference"] = "onnxruntime"
    """What runs the model: ONNX Runtime, PyTorch on CUDA, or the server of `remote`. Where it is absent the service
    refuses to start; it never falls back to another."""
    provider: str = "CPUExecutionProvider"
    """Execution provider of ONNX Runtime (CUDAExecutionProvider, TensorrtExecutionProvider); likewise."""
    threads: Positive = 1
    """Threads in one inference."""
    ladder: bool = True
    """Where the model is unsure of an image, let the fp32 form of the release look too, before a person is asked."""
    batching: DynamicBatching = DynamicBatching()
    """Images run together; off."""
    remote: RemoteModel = RemoteModel()
    """Where the model is, if backend is open-inference."""
    open_inference: OpenInference = OpenInference()
    """The models over the Open Inference Protocol."""
    shadow: Shadow = Shadow()
    """A candidate beside the model; none."""
    release_proof: File = _UNSET
    """Proof that the release of `model` is in the log (`stepwedge model release`); default release.tlog-proof in the
    folder of the model."""
    require_release_record: bool = False
    """Refuse to start without that proof; else its absence is a line in the service's log."""

    @model_validator(mode="after")
    def _the_remote_model_is_somewhere(self) -> Self:
        if self.backend == "open-inference" and not self.remote.address:
            raise ValueError("remote.address must be set where backend is open-inference")
        return self


class Forward(Section):
    """Where the log is forwarded as DICOM audit messages over syslog TLS (`python -m services.audit forward`)."""

    receiver: OptionalEndpoint = ""
    """Where the receiver listens, host:port (the registered port is 6514); empty for no forwarding."""
    server_name: str = ""
    """Name in the receiver's certificate; default the host of `receiver`."""
    ca: File = _UNSET
    """File of the CA certificates that the receiver's certificate is checked against; default the system's."""
    certificate: File = _UNSET
    """Our certificate for the receiver; default that of the audit service."""
    key: File = _UNSET
    """Its private key; default that of the audit service."""
    cursor: File = _UNSET
    """File that remembers what the receiver confirmed; default <data>/audit.forwarded."""
    batch: Annotated[int, Field(gt=0, le=10_000)] = 256
    """Records in one TLS session at most."""
    max_octets: Annotated[int, Field(ge=0)] = 32_768
    """Longest syslog message; facts out of lists are left out of a longer one. 0 for any length. Every receiver takes
    32,768 (PS3.15 A.6)."""
    poll_seconds: Seconds = 1.0
    """How often the log is asked for new records."""
    timeout_seconds: Seconds = 30.0
    """How long the receiver may take for one step of the session."""


class WitnessOfLog(Section):
    """A witness that is asked to cosign checkpoints."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]
    """Its submission prefix, "https://witness.example:7201"; /add-checkpoint comes behind it."""
    vkey: str
    """Its verification key, "name+hash+key" (C2SP tlog-cosignature, Ed25519)."""
    ca: str = ""
    """File of the CA certificates that its certificate is checked against; empty for the system's."""

    @field_validator("vkey")
    @classmethod
    def _is_the_key_of_a_witness(cls, value: str) -> str:
        WitnessKey.parse(value)
        return value

    @field_validator("ca")
    @classmethod
    def _lies_somewhere(cls, value: str) -> str:
        return value and str(_absolute(Path(value)))


class Publication(Section):
    """The log as C2SP tlog-tiles over HTTPS, read-only."""

    listen: OptionalEndpoint = ""
    """Where HTTPS is served, host:port; empty for nowhere."""
    anyone: bool = False
    """Let whoever reaches the address read, without a certificate; by default only an auditor's or operator's reads."""


class Stamping(Section):
    """Time stamps on checkpoints (RFC 3161), from an authority that is not the log's."""

    url: Annotated[str, Field(pattern=r"^(https?://[^\s?#@]+)?$")] = ""
    """URL of the authority; empty for no stamps. Needs the package rfc3161-client (the extra `stamp`)."""
    certificates: File = _UNSET
    """PEM file: the authority's root certificate, and those between it and the one that signs where it does not send
    them."""
    interval_seconds: Seconds = 3600.0
    """A checkpoint is stamped so often, where the log has grown."""
    timeout_seconds: Seconds = 10.0
    """How long the authority may take to answer."""
    alert_seconds: Seconds = 86_400.0
    """When the log has grown and no stamp could be had for so long, an alert is recorded. Records are taken all the
    while."""

    @model_validator(mode="after")
    def _is_verified(self) -> Self:
        if self.url and self.certificates == _UNSET:
            raise ValueError("certificates must be set where url is")
        return self


class Audit(Service):
    """The log."""

    listen: Endpoint = "127.0.0.1:7104"
    metrics: OptionalEndpoint = "127.0.0.1:9104"
    database: DatabaseUrl = ""
    """SQLAlchemy URL; default an SQLite file in the data folder."""
    origin: Annotated[str, Field(pattern=r"^[^\s+]{1,200}$")] = "stepwedge/audit"
    """Name of the log in its checkpoints (C2SP tlog-checkpoint); no spaces and no plus."""
    group_commit_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """How long a batch waits for company before it is committed, milliseconds."""
    group_commit_records: Positive = 256
    """Records in one commit at most."""
    high_water: File = _UNSET
    """File that remembers the newest checkpoint outside the database; default <data>/audit.high-water."""
    master_key: File = _UNSET
    """File of the key that wraps the key of each subject; the service makes it, and replaces it at every erasure.
    Default identity-master.key in the keys folder, which the service must then be able to write. Keep it out of the
    backups of the database."""
    keys: File = _UNSET
    """Folder of the log's signing key and of audit.vkey; default the keys folder. The service writes there when its key
    is rotated, so it must be the folder itself and no copy of it."""
    retention_default: Literal["M6", "Y6", "Y10", "Y15"] = "Y6"
    """How long a record is kept at least: six months, 6, 10 or 15 years. Records of models, of constancy tests and of
    alerts are kept ten years at least; those of erasure, legal holds, pruning and keys as long as the log."""
    retention: dict[str, Literal["M6", "Y6", "Y10", "Y15"]] = {}
    """Kind of record (received, assessed, ...) to its class, where it is not the default."""
    check_per_second: Annotated[int, Field(ge=0)] = 500
    """Entries a second that are held against the tree in the background, over and over; 0 for none."""
    forward: Forward = Field(default_factory=lambda: Forward())
    """Forwarding to a syslog receiver; off unless it has one."""
    publication: Publication = Field(default_factory=lambda: Publication())
    """Publication of the tree and the entries over HTTPS; off unless it has an address."""
    stamping: Stamping = Field(default_factory=lambda: Stamping())
    """Time stamps on checkpoints; off unless there is an authority."""
    witnesses: list[WitnessOfLog] = []
    """Who is asked to cosign checkpoints."""
    quorum: Annotated[int, Field(ge=0)] = 0
    """How many different witnesses make a cosigned checkpoint; 0: none is asked."""
    witness_interval_seconds: Seconds = 1.0
    """Witnesses are asked at most so often; at the end of the service once more."""
    witness_timeout_seconds: Seconds = 5.0
    """How long a witness may take to answer."""
    quorum_alert_seconds: Seconds = 300.0
    """When too few witnesses cosigned for so long, an alert is recorded. Records are taken all the while."""

    @model_validator(mode="after")
    def _enough_witnesses_for_the_quorum(self) -> Self:
        different = {WitnessKey.parse(witness.vkey).public for witness in self.witnesses}
        if len(different) < len(self.witnesses):
            raise ValueError("two witnesses have one key")
        if self.quorum > len(different):
            raise ValueError("quorum is more than there are witnesses")
        return self


RoleName = Literal["radiographer", "operator", "auditor", "administrator"]


class OpenIdConnect(Section):
    """The site's own sign-in (OpenID Connect Core 1.0, authorization code flow with PKCE)."""

    issuer: Annotated[str, Field(pattern=r"^(https?://[^\s?#]+)?$")] = ""
    """URL of the provider, as its discovery document names it; empty for local accounts only."""
    client_id: str = ""
    """How the provider knows the console."""
    client_credential: File = _UNSET
    """File that holds what the client proves itself with; unset for a public client."""
    ca: File = _UNSET
    """File of the CA certificates that the provider's certificate is checked against; default the system's."""
    account_claim: str = "preferred_username"
    """Claim that names the account in the records."""
    roles_claim: str = "groups"
    """Claim that holds the groups of a person."""
    roles: dict[str, RoleName] = {}
    """Group -> role; who is in none of them is not let in."""


class Console(Section):
    """The window for people: a web page."""

    listen: Endpoint = "127.0.0.1:7105"
    """Where HTTPS is served, host:port."""
    url: Annotated[str, Field(pattern=r"^(https://[^\s?#]+[^\s?#/])?$")] = ""
    """How browsers reach it; default https:// and `listen`."""
    certificate: File = _UNSET
    """Certificate for browsers (PEM, with its chain); default that of the identity `console`."""
    key: File = _UNSET
    """Its private key."""
    database: DatabaseUrl = ""
    """SQLAlchemy URL of accounts and sessions; default an SQLite file in the data folder."""
    first_password: File = _UNSET
    """File into which the password of the first administrator is written; default <data>/console.first-password."""
    site_name: Annotated[str, Field(max_length=80)] = ""
    """Shown on every page and printed on every dossier."""
    local_accounts: bool = True
    """Whether accounts of the console itself may sign in."""
    idle_minutes: Annotated[float, Field(gt=0, le=720)] = 15
    """A session ends when nothing was asked for so long."""
    session_hours: Annotated[float, Field(gt=0, le=24)] = 10
    """A session ends after so long, whatever was asked."""
    oidc: OpenIdConnect = Field(default_factory=lambda: OpenIdConnect())
    """Sign-in by the site's own provider."""

    @model_validator(mode="after")
    def _has_an_address(self) -> Self:
        self.url = self.url or f"https://{self.listen}"
        return self


class Telemetry(Section):
    """What the cluster says about itself."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe level that is logged."""
    otlp_endpoint: str = ""
    """URL of an OpenTelemetry collector for traces (gRPC); empty for none."""


class Settings(BaseSettings):
    """Everything; `load()` makes one."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    cluster: Cluster = Field(default_factory=lambda: Cluster())
    objects: Objects = Field(default_factory=lambda: Objects())
    ingest: Ingest = Field(default_factory=lambda: Ingest())
    redaction: Redaction = Field(default_factory=lambda: Redaction())
    inference: Inference = Field(default_factory=lambda: Inference())
    audit: Audit = Field(default_factory=lambda: Audit())
    console: Console = Field(default_factory=lambda: Console())
    telemetry: Telemetry = Field(default_factory=lambda: Telemetry())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments before environment before file; nothing else is read."""
        file = _file.get()
        sources: tuple[PydanticBaseSettingsSource, ...] = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls, toml_file=file)) if file else sources

    @model_validator(mode="after")
    def _what_is_unset_lies_below_data(self) -> Self:
        data = self.cluster.data
        for section, key, value in (
            (self.cluster, "pki", data / "pki"),
            (self.cluster, "keys", data / "keys"),
            (self.objects, "scratch", data / "objects" / "scratch"),
            (self.audit, "high_water", data / "audit.high-water"),
            (self.audit.forward, "cursor", data / "audit.forwarded"),
            (self.console, "first_password", data / "console.first-password"),
        ):
            if getattr(section, key) == _UNSET:
                setattr(section, key, value)
        for key, name in (("certificate", "console.crt"), ("key", "console.key")):
            if getattr(self.console, key) == _UNSET:
                setattr(self.console, key, self.cluster.pki / name)
        for key, name in (("certificate", "ingest.crt"), ("key", "ingest.key")):
            if getattr(self.ingest.dicomweb, key) == _UNSET:
                setattr(self.ingest.dicomweb, key, self.cluster.pki / name)
        for key, name in (("ca", "ca.crt"), ("certificate", "inference.crt"), ("key", "inference.key")):
            if getattr(self.inference.remote, key) == _UNSET:
                setattr(self.inference.remote, key, self.cluster.pki / name)
        if self.inference.release_proof == _UNSET:
            self.inference.release_proof = self.inference.model / "release.tlog-proof"
        if self.audit.master_key == _UNSET:
            self.audit.master_key = self.cluster.keys / "identity-master.key"
        if self.audit.keys == _UNSET:
            self.audit.keys = self.cluster.keys
        self.objects.original = self.objects.original or str(data / "objects" / "original")
        self.objects.deidentified = self.objects.deidentified or str(data / "objects" / "deidentified")
        self.ingest.database = self.ingest.database or f"sqlite:///{data / 'ingest.db'}"
        self.audit.database = self.audit.database or f"sqlite:///{data / 'audit.db'}"
        self.console.database = self.console.database or f"sqlite:///{data / 'console.db'}"
        return self

    def for_service(self, name: str | Identity) -> Service:
        """Return the section of the service `name`; CONFIGURATION where there is no such service."""
        section = getattr(self, str(name), None)
        if not isinstance(section, Service):
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, "no service of this name has settings")
        return section


def load(path: Path | None = None) -> Settings:
    """Read the settings.

    Parameters
    ----------
    path
        The TOML file; by default the one that the environment variable STEPWEDGE_CONFIG names, else none.

    Raises
    ------
    StepwedgeError
        CONFIGURATION, in one line that names the keys and never their values.
    """
    if path is None and os.environ.get(FILE_VARIABLE):
        path = Path(os.environ[FILE_VARIABLE])
    if path is not None:
        path = path.resolve()
        if not path.is_file():
            raise StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, f"the settings file {path.name} is not there")
    _refuse_unknown_overrides()
    with _reading(path):
        try:
            return Settings()
        except ValidationError as error:
            raise _configuration(_in_one_line(error)) from None
        except SettingsError:
            raise _configuration("an environment variable does not hold the JSON that its key needs") from None
        except (ValueError, OSError) as error:  # tomllib's errors are ValueErrors: position, no content
            raise _configuration(f"the settings file cannot be read: {_first_line(error)}") from None


@contextmanager
def _reading(path: Path | None) -> Iterator[None]:
    token = _file.set(path)
    try:
        yield
    finally:
        _file.reset(token)


def _configuration(message: str) -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_CONFIGURATION, message)


def _refuse_unknown_overrides() -> None:
    # pydantic-settings reads the variables it knows and is silent about STEPWEDGE_INJEST__LISTEN.
    sections = {name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.upper().startswith(PREFIX) and "__" in variable:
            section = variable.upper().removeprefix(PREFIX).split("__", 1)[0]
            if section not in sections:
                raise _configuration(f"the environment variable {variable} names no section of the settings")


def _in_one_line(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    words = [
        f"{'.'.join(str(part) for part in one['loc']) or 'settings'}: {_words(one['type'], one['msg'])}"
        for one in found
    ]
    shown = "; ".join(words[:5])
    return shown if len(words) <= 5 else f"{shown}; and {len(words) - 5} more"


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "settings"


def _words(kind: str, message: str) -> str:
    return "no such key" if kind == "extra_forbidden" else _first_line(message)


def _first_line(message: object) -> str:
    return (str(message).splitlines() or [""])[0].removeprefix("Value error, ")
