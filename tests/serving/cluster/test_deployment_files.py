"""The files under ``deploy/``: each against what it is for, as far as that is installed."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("fastapi")

from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from longlive_trt.fleet import Arguments, fleet_of, settings_of
from tests.serving.cluster.conftest import StartFleet

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"

KUBERAY = yaml.safe_load((ROOT / "tests" / "data" / "kuberay.yaml").read_text())
PLAIN = {"string": str, "boolean": bool, "kubernetes": object}


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def arguments(config: Any) -> dict[str, Any]:
    (application,) = config["applications"]
    assert application["import_path"] == "longlive_trt.fleet:app"
    values: dict[str, Any] = application["args"]
    return values


def faults(value: Any, kind: Any, where: str) -> list[str]:
    """What ``tests/data/kuberay.yaml`` does not allow."""
    if isinstance(kind, list):
        return [] if value in kind else [f"{where}: {value!r} is none of {kind}"]
    if kind == {}:
        is_map = isinstance(value, dict) and all(type(one) is str for one in value.values())
        return [] if is_map else [f"{where}: not a map of strings"]
    if kind == "count":
        return [] if type(value) is int and value >= 0 else [f"{where}: {value!r} is no number"]
    if kind in PLAIN:
        return [] if isinstance(value, PLAIN[kind]) else [f"{where}: {value!r} is no {kind}"]
    if kind.startswith("list of "):
        inner = kind.removeprefix("list of ")
        return [f for n, one in enumerate(value) for f in faults(one, inner, f"{where}[{n}]")]
    return faults_of_fields(value, KUBERAY[kind], where)


def faults_of_fields(value: Any, fields: dict[str, Any], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: not a section"]
    kinds = {name.rstrip("!"): kind for name, kind in fields.items()}
    missing = [name[:-1] for name in fields if name.endswith("!") and name[:-1] not in value]
    found = [f"{where}.{name}: unknown" for name in value if name not in kinds]
    found += [f"{where}.{name}: missing" for name in missing]
    for name in value.keys() & kinds.keys():
        found += faults(value[name], kinds[name], f"{where}.{name}")
    return found


def test_serves_arguments_are_ours() -> None:
    chosen = Arguments(**arguments(read("serve.yaml")))
    fleet = fleet_of(chosen)
    assert (fleet.scaling.least, fleet.scaling.most, fleet.gpus_per_host) == (2, 16, 1)
    assert settings_of(chosen, "secret").allowed_hosts == ("video.example.com",)


@pytest.mark.parametrize(
    "wrong", [{"stroe": "x"}, {"store": ""}, {"hosts": 0}, {"device": "tpu"}, {"save_every_s": 0}]
)
def test_arguments_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Arguments(**{"store": "states", **wrong})


def test_the_manifest_is_a_ray_service() -> None:
    manifest = read("rayservice.yaml")
    assert faults(manifest, "RayService", "manifest") == []
    inside = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    assert arguments(inside) == arguments(read("serve.yaml"))
    groups = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    hosts = next(group for group in groups if group["groupName"] == "hosts")
    assert hosts["maxReplicas"] == arguments(inside)["most_hosts"]
    for group in groups:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    # A pod must outlive what it gives its sessions away in.
    grace = hosts["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > fleet_of(Arguments(**arguments(inside))).grace_s


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("apiVersion",), "ray.io/v2", "manifest.apiVersion: 'ray.io/v2' is none of"),
        (("spec", "serviceUnhealthySecondThreshold"), 900, "serviceUnhealthySecondThreshold: unkn"),
        (("spec", "serveConfigV2"), {}, "serveConfigV2: {} is no string"),
        (("spec", "rayClusterConfig", "headGroupSpec"), None, "headGroupSpec: not a section"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "replicsa"), 1, "replicsa: unknown"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 1, "replicas"), "2", "'2' is no number"),
        (
            ("spec", "rayClusterConfig", "headGroupSpec", "rayStartParams"),
            {"num-cpus": 0},
            "rayStartParams: not a map of strings",
        ),
    ],
)
def test_a_manifest_with_a_slip_is_told(
    path: tuple[str | int, ...], value: object, words: str
) -> None:
    manifest = read("rayservice.yaml")
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (fault,) = faults(manifest, "RayService", "manifest")
    assert words in fault


def test_a_manifest_without_what_it_must_have_is_told() -> None:
    manifest = read("rayservice.yaml")
    del manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["groupName"]
    (fault,) = faults(manifest, "RayService", "manifest")
    assert fault.endswith("workerGroupSpecs[0].groupName: missing")


def test_hosts_share_what_they_freed() -> None:
    (application,) = read("serve.yaml")["applications"]
    assert application["runtime_env"]["env_vars"] == {"MALLOC_ARENA_MAX": "2"}
    assert "ENV MALLOC_ARENA_MAX=2\n" in (DEPLOY / "Dockerfile").read_text()


def test_versions_and_extras_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.search(r"longlive-trt\[([a-z,]+)\]", (DEPLOY / "Dockerfile").read_text())
    assert extras is not None
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])
    manifest = (DEPLOY / "rayservice.yaml").read_text()
    assert set(re.findall(r"longlive-trt:([0-9.]+)", manifest)) == {project["version"]}
    (ray,) = project["optional-dependencies"]["cluster"]
    version = read("rayservice.yaml")["spec"]["rayClusterConfig"]["rayVersion"]
    assert ray == f"ray[serve]>={version.rpartition('.')[0]}"


def test_dashboards_and_alerts_ask_for_figures_that_there_are(start: StartFleet) -> None:
    fleet = start(hosts=1)
    text = fleet.ask("GET", "/metrics").body.decode()
    told = {sample.name for one in text_string_to_metric_families(text) for sample in one.samples}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    asked = [one["expr"] for panel in dashboard["panels"] for one in panel["targets"]]
    asked += [rule["expr"] for group in read("alerts.yaml")["groups"] for rule in group["rules"]]
    names = {name for expr in asked for name in re.findall(r"longlive_[a-z_]+", expr)}
    assert names and names - told == set()


def test_the_dashboard_is_the_one_that_is_written() -> None:
    before = (DEPLOY / "grafana.json").read_text()
    source = (
        "import json, runpy;"
        "written = runpy.run_path('scripts/dashboard.py')['dashboard']();"
        "print(json.dumps(written, indent=1))"
    )
    process = subprocess.run(
        [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout == before


@pytest.mark.exhaustive
def test_rays_own_schema_takes_the_configuration() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="scripts/fleet_tools.sh installs it")
    for config in (
        read("serve.yaml"),
        yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"]),
    ):
        parsed = schema.ServeDeploySchema.model_validate(config)
        assert parsed.applications[0].args == arguments(config)
        assert parsed.http_options.port == 8400


@pytest.mark.exhaustive
def test_the_pods_are_kubernetes_pods() -> None:
    validate = pytest.importorskip(
        "kubernetes_validate", reason="scripts/fleet_tools.sh installs it"
    )
    cluster = read("rayservice.yaml")["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": "pod"},
            "template": group["template"],
        }
        validate.validate(pod, "1.31", strict=True)


@pytest.mark.exhaustive
def test_the_docker_file_is_clean() -> None:
    """It is not built here."""
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint; scripts/fleet_tools.sh installs it")
    process = subprocess.run(
        [hadolint, "--failure-threshold", "info", DEPLOY / "Dockerfile"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout
