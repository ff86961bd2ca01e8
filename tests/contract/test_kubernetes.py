"""The manifests for Kubernetes, as far as a machine without a cluster can tell.

Each is valid by the API schemas, and everything that they name (image, port, path, key, Secret, command, network) is
true of the Dockerfile, the settings and what `provision` mints.
"""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import keys, provision, settings
from shared.identity import SERVICES, Identity
from tests.contract.test_deploy import ROOT, stage

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
CLUSTER = tomllib.loads((FOLDER / "cluster.toml").read_text())
RELEASES = ("1.30", "1.33", "1.36")
SCALED = ("ingest", "redaction", "inference")
WORKLOADS = (*SCALED, "audit", "console", "backup")


def manifests() -> list[dict[str, Any]]:
    """Every object, in the order of the kustomization."""
    return [
        document
        for file in KUSTOMIZATION["resources"]
        for document in yaml.safe_load_all((FOLDER / file).read_text())
        if document
    ]


def of(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in manifests() if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def workload(name: str) -> dict[str, Any]:
    [found] = [
        one
        for one in manifests()
        if one["metadata"]["name"] == name and one["kind"] in ("Deployment", "StatefulSet", "CronJob")
    ]
    return found


def pod(name: str) -> dict[str, Any]:
    """The specification of a workload's pods."""
    spec = workload(name)["spec"]
    spec = spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec
    return spec["template"]["spec"]  # type: ignore[no-any-return]


def containers(name: str) -> list[dict[str, Any]]:
    return [*pod(name).get("initContainers", []), *pod(name)["containers"]]


def ports(service: str) -> dict[str, int]:
    """Name of each port in the manifests -> what the settings listen on."""
    section = CLUSTER[service]
    named = {"listen": "https" if service == "console" else "grpc", "metrics": "metrics", "dimse": "dicom"}
    return {name: int(section[key].rpartition(":")[2]) for key, name in named.items() if key in section}


def test_every_file_of_the_folder_is_part_of_the_whole_and_no_object_stands_twice() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests()]
    assert len(set(names)) == len(names)
    assert {one["metadata"]["name"] for one in manifests() if one["kind"] in ("Deployment", "StatefulSet")} == {
        *(service.value for service in SERVICES),
        "console",
    }


@pytest.mark.parametrize("release", RELEASES)
def test_every_manifest_is_valid_by_the_schemas_of_the_api(release: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    for one in manifests():
        validator.validate(one, release, strict=True)


def test_the_schemas_would_notice_a_wrong_field() -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    wrong = of("Deployment", "ingest")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, RELEASES[-1], strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl (its kustomize works without a cluster)")
def test_kustomize_builds_the_whole_and_every_reference_to_the_settings_is_to_the_file_as_it_is() -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, timeout=60, check=False
    )
    assert built.returncode == 0, built.stderr
    documents = list(yaml.safe_load_all(built.stdout))
    [config] = [one for one in documents if one["kind"] == "ConfigMap"]
    assert config["data"]["cluster.toml"] == (FOLDER / "cluster.toml").read_text()
    assert {one["metadata"].get("namespace", "stepwedge") for one in documents} == {"stepwedge"}
    assert built.stdout.count(f"name: {config['metadata']['name']}\n") == 1 + len(WORKLOADS)
    images = set(re.findall(r"image: (\S+)", built.stdout))
    assert images == {f"stepwedge/{name}:0.1.0" for name in (*SCALED, "audit", "console", "cli")}


def test_the_settings_are_valid_and_each_service_is_reached_at_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.FILE_VARIABLE, str(FOLDER / "cluster.toml"))
    read = settings.load()
    assert read.cluster.production
    for service in SERVICES:
        name, _, port = read.for_service(service).address.rpartition(":")
        assert name == service.value
        assert int(port) in {one["port"] for one in of("Service", name)["spec"]["ports"]}


@pytest.mark.parametrize("name", WORKLOADS)
def test_each_pod_is_confined(name: str) -> None:
    spec = pod(name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == provision.SERVICE_USER
    assert spec["securityContext"]["fsGroup"] == provision.SERVICE_USER
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for one in containers(name):
        context = one["securityContext"]
        assert context == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"cpu", "memory"} <= one["resources"]["requests"].keys()
        assert "memory" in one["resources"]["limits"]
        target = one["image"].removeprefix("stepwedge/")
        assert f"USER {provision.SERVICE_USER}:{provision.SERVICE_USER}" in stage(target)
    assert of("ServiceAccount", spec["serviceAccountName"])["automountServiceAccountToken"] is False


@pytest.mark.parametrize("service", [*(one.value for one in SERVICES), "console"])
def test_each_pod_exposes_what_its_settings_listen_on_and_its_service_leads_there(service: str) -> None:
    [container] = pod(service)["containers"]
    exposed = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert exposed == ports(service)
    image = re.search(r"^EXPOSE (.+)$", stage(service), re.MULTILINE)
    assert image
    assert set(exposed.values()) <= {int(port) for port in image[1].split()}
    served = of("Service", service)["spec"]
    assert served["selector"] == {"app.kubernetes.io/name": service}
    for port in served["ports"]:
        assert exposed[port["targetPort"]] == port["port"]
    door = of("Service", "dicom")["spec"]
    assert [port["targetPort"] for port in door["ports"]] == ["dicom"]
    assert door["externalTrafficPolicy"] == "Local"


@pytest.mark.parametrize("service", [*(one.value for one in SERVICES), "console"])
def test_the_probes_are_the_commands_of_the_image_and_liveness_does_not_follow_a_dependency(service: str) -> None:
    [container] = pod(service)["containers"]
    health = re.search(r"^HEALTHCHECK .* CMD (\[.+\])$", stage(service), re.MULTILINE)
    assert health
    command = yaml.safe_load(health[1])
    assert container["readinessProbe"]["exec"]["command"] == command
    alive = command if service == "console" else [*command, "--alive"]
    assert container["livenessProbe"]["exec"]["command"] == alive
    assert container["startupProbe"]["exec"]["command"] == alive
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        assert container[probe]["timeoutSeconds"] > 3  # shared.probe itself gives the service so long


def secrets_of(name: str) -> Iterator[tuple[str, str]]:
    """Secret and key of everything that a pod takes from one."""
    for volume in pod(name)["volumes"]:
        if "secret" in volume:
            for item in volume["secret"]["items"]:
                yield volume["secret"]["secretName"], item["key"]
    for container in containers(name):
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                yield reference["name"], reference["key"]


@pytest.mark.parametrize("service", [*(one.value for one in SERVICES), "console"])
def test_each_pod_is_handed_the_secrets_of_its_role_and_no_others(service: str) -> None:
    identity = Identity(service)
    wanted = {"ca.crt", f"{service}.crt", f"{service}.key", *provision.KEYS_OF[identity]}
    if identity in provision.DATABASES:
        wanted.add(provision.POSTGRES_CERTIFICATE)
    found = set(secrets_of(service))
    assert {key for name, key in found if name == f"stepwedge-{service}"} == wanted
    others = {name for name, _ in found} - {f"stepwedge-{service}"}
    assert others <= {f"stepwedge-{service}-store", f"stepwedge-{service}-database"}
    assert (f"stepwedge-{service}-database" in others) == (identity in provision.DATABASES)


def test_provision_mints_every_file_that_a_secret_is_made_of(tmp_path: Path) -> None:
    provision.provision(tmp_path, origin="test/log", postgres="postgres")
    for name in WORKLOADS:
        for secret, key in secrets_of(name):
            role = secret.removeprefix("stepwedge-")
            if role.endswith("-store"):
                assert key in ("access-key-id", "secret-access-key")
            elif role.endswith("-database"):
                assert key == "password"
                assert (tmp_path / "authority/postgres" / f"{role.removesuffix('-database')}.password").is_file()
            elif key != provision.POSTGRES_CERTIFICATE:  # the site's own
                assert any((tmp_path / role / folder / key).is_file() for folder in ("pki", "keys")), (role, key)


def test_every_mount_is_of_a_volume_and_every_path_of_the_settings_is_mounted() -> None:
    for name in WORKLOADS:
        claims = [one["metadata"]["name"] for one in workload(name)["spec"].get("volumeClaimTemplates", [])]
        volumes = {volume["name"] for volume in pod(name)["volumes"]} | set(claims)
        for container in containers(name):
            mounted = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
            assert {mount["name"] for mount in mounted.values()} <= volumes
            for path in ("/etc/stepwedge", "/run/stepwedge/pki", "/run/stepwedge/keys"):
                assert path not in mounted or mounted[path]["readOnly"] is True
    assert "/var/lib/stepwedge" in {mount["mountPath"] for mount in pod("audit")["containers"][0]["volumeMounts"]}
    for key in ("master_key", "keys", "high_water"):  # what the log writes lies on its volume
        assert CLUSTER["audit"][key].startswith("/var/lib/stepwedge/")
    assert workload("audit")["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "state"


def test_the_log_finds_its_minted_key_on_its_volume_and_a_rotated_one_is_kept(tmp_path: Path) -> None:
    [seeding] = pod("audit")["initContainers"]
    minted, state = tmp_path / "minted", tmp_path / "state"
    minted.mkdir()
    state.mkdir()
    for name in (keys.SIGNING, keys.VERIFICATION):
        (minted / name).write_text("minted")
    [shell, options, script] = seeding["command"]
    script = script.replace("/run/stepwedge/keys", str(minted)).replace("/var/lib/stepwedge", str(state))
    for _ in range(2):
        subprocess.run([shell, options, script], check=True)
        assert (state / "keys" / keys.SIGNING).stat().st_mode & 0o077 == 0
    (state / "keys" / keys.SIGNING).write_text("rotated")
    subprocess.run([shell, options, script], check=True)
    assert (state / "keys" / keys.SIGNING).read_text() == "rotated"
    assert (state / "keys" / keys.VERIFICATION).read_text() == "minted"


def test_inference_has_no_way_to_an_original_object() -> None:
    [container] = pod("inference")["containers"]
    told = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert told["STEPWEDGE_OBJECTS__ORIGINAL"] == "s3://withheld"
    assert "PGPASSWORD" not in told
    assert reach("inference") == {("audit", 7104), ("outside", 9000)}
    assert "pseudonyms.key" not in {key for _, key in secrets_of("inference")}


def reach(name: str) -> set[tuple[str, int]]:
    """Whom a pod may call, and at which port."""
    found = set()
    for rule in of("NetworkPolicy", name)["spec"].get("egress", []):
        for peer in rule["to"]:
            where = peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"] if "podSelector" in peer else "outside"
            found |= {(where, port["port"]) for port in rule["ports"]}
    return found


def test_nobody_speaks_with_anybody_but_as_the_services_do() -> None:
    everything = of("NetworkPolicy", "nobody")["spec"]
    assert everything == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    grpc = {service.value: ports(service.value)["grpc"] for service in SERVICES}
    assert {peer for peer in reach("ingest") if peer[0] != "outside"} == {
        (name, grpc[name]) for name in ("redaction", "inference", "audit")
    }
    assert {peer for peer in reach("redaction") if peer[0] != "outside"} == {("audit", grpc["audit"])}
    assert {peer for peer in reach("audit") if peer[0] != "outside"} == set()
    for name in (*SCALED, "audit", "console"):  # whom somebody may call lets that somebody in
        policy = of("NetworkPolicy", name)["spec"]
        allowed = {
            (peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"], port["port"])
            for rule in policy["ingress"]
            for peer in rule["from"]
            if "podSelector" in peer
            for port in rule["ports"]
        }
        callers = {(caller, port) for caller in WORKLOADS for to, port in reach(caller) if to == name}
        assert callers <= allowed, name
        listened = set(ports(name).values())
        assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= listened


@pytest.mark.parametrize("name", SCALED)
def test_what_has_no_state_scales_and_is_never_taken_away_all_at_once(name: str) -> None:
    deployment = workload(name)
    assert "replicas" not in deployment["spec"]  # the autoscaler's; an apply must not set it back
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    scaler = of("HorizontalPodAutoscaler", name)["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    assert "cpu" in pod(name)["containers"][0]["resources"]["requests"]  # what the utilisation is a share of
    budget = of("PodDisruptionBudget", name)["spec"]
    assert budget["selector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    assert budget["maxUnavailable"] < scaler["minReplicas"]


def test_a_door_leaves_its_service_before_it_is_told_to_stop_and_has_time_to_drain() -> None:
    from shared.rpc import GRACE_SECONDS

    for name in SCALED:
        spec = pod(name)
        [wait, seconds] = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert wait == "sleep"
        assert spec["terminationGracePeriodSeconds"] > int(seconds) + GRACE_SECONDS


def test_headless_services_are_those_whose_clients_spread_their_calls() -> None:
    for name in ("redaction", "inference"):
        assert of("Service", name)["spec"]["clusterIP"] == "None"


def test_no_manifest_holds_a_password() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.yaml"))
    assert not re.search(r"(?i)(password|secret-access-key|token)\s*:\s*[\"']?[A-Za-z0-9+/]{8,}", text)
    assert "kind: Secret\n" not in text
