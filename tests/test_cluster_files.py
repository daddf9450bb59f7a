"""The files of cluster/: what Ray, the clouds and KubeRay would refuse. Starts no Ray, needs no network."""

import copy
import json
import os
import re
import string
import subprocess
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import kuberay

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
README = (CLUSTER / "README.md").read_text()
UP = ("aws", "gcp")
YAMLS = sorted(CLUSTER.rglob("*.yaml"))
VALUES = {  # what a user exports before envsubst, see the README
    "AWS_REGION": "us-west-2",
    "EDC_AMI": "ami-0",
    "EDC_IMAGE": "registry/edc-ray:1",
    "EDC_NFS": "host:/share",
    "EDC_PROJECT": "project",
    "EDC_REGION": "us-central1",
    "EDC_STORAGE_CLASS": "nfs",
    "EDC_ZONE": "us-central1-a",
    "RAY_AUTH_MODE": "token",
}
Config = dict[str, Any]


def filled(name: str) -> Config:
    """A file of cluster/ after envsubst; KeyError where a variable has no value."""
    text = re.sub(r"\$\{(\w+)\}", lambda found: VALUES[found[1]], (CLUSTER / name).read_text())
    loaded: Config = yaml.safe_load(text)
    return loaded


def changed(config: Config, path: str, name: str) -> Config:
    """A copy in which the last key of a dotted path has another name."""
    config = copy.deepcopy(config)
    *above, last = path.split(".")
    part: Any = config
    for key in above:
        part = part[int(key) if key.isdigit() else key]
    part[name] = part.pop(last)
    return config


def pins() -> dict[str, str]:
    """constraints.txt as version by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- ray up -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=UP)
def up(request: pytest.FixtureRequest) -> Config:
    return filled(f"{request.param}.yaml")


def prepared(config: Config) -> Config:
    """As `ray up` does it: the provider's defaults, then the JSON schema and the sums of workers."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


def test_ray_up_accepts(up: Config) -> None:
    prepared(up)


@pytest.mark.parametrize(
    "path",
    ["max_workers", "head_node_type", "docker.head_image", "auth.ssh_user"]
    + [f"available_node_types.gpu_spot.{key}" for key in ("max_workers", "priority", "resources")],
)
def test_ray_up_refuses_a_typo(up: Config, path: str) -> None:
    with pytest.raises(Exception, match="typo"):
        prepared(changed(up, path, "typo"))


def test_no_head_work_and_gpus_from_zero(up: Config) -> None:
    """Images and commands as autoscaler v2 reads them (it needs `image` even where head_image is given)."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    read = AutoscalingConfig(prepared(up), skip_content_hash=True)
    types = read.get_node_type_configs()
    assert set(types) == {"head", "gpu_spot", "gpu_on_demand"} and up["head_node_type"] == "head"
    assert types["head"].resources == {"CPU": 0}
    for name, kind in types.items():
        assert kind.min_worker_nodes == 0
        assert read.get_docker_config(name)["image"].endswith("-cpu" if name == "head" else "-gpu")
        assert any("/mnt/edc-store" in line for line in read.get_initialization_commands(name))
    spot, steady = types["gpu_spot"], types["gpu_on_demand"]
    assert up["max_workers"] == spot.max_worker_nodes + steady.max_worker_nodes
    assert spot.resources == steady.resources == {"CPU": 16, "GPU": 1}
    assert spot.priority > steady.priority
    assert up["docker"]["run_options"].count("-v /mnt/edc-store:/mnt/edc-store") == 1
    assert up["idle_timeout_minutes"] == 5


def test_only_the_spot_workers_are_spot(up: Config) -> None:
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}}, {"scheduling": {"provisioningModel": "SPOT"}}
    for name, kind in up["available_node_types"].items():
        asked = [mark for mark in spot if contains(kind["node_config"], mark)]
        assert len(asked) == (name == "gpu_spot")


def contains(given: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return bool(given == wanted)
    return isinstance(given, dict) and all(k in given and contains(given[k], wanted[k]) for k in wanted)


def test_aws_accepts_the_parameters() -> None:
    """By EC2's own model of RunInstances, which Ray's schema does not look into."""
    session = pytest.importorskip("botocore.session", reason="needs the extra `cloud`")
    from botocore.validate import ParamValidator

    shape = session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for kind in filled("aws.yaml")["available_node_types"].values():
        asked = kind["node_config"] | {"MinCount": 1, "MaxCount": 1}
        found = ParamValidator().validate(asked, shape)
        assert not found.has_errors(), found.generate_report()
        assert asked["InstanceType"] in shape.members["InstanceType"].enum
        market = asked.get("InstanceMarketOptions", {"MarketType": "spot"})["MarketType"]
        assert market in shape.members["InstanceMarketOptions"].members["MarketType"].enum
    assert ParamValidator().validate({"InstanceMarketOption": {}}, shape).has_errors()


def test_google_accepts_the_parameters() -> None:
    """By Compute Engine's own description of an instance, which Ray's schema does not look into."""
    client = pytest.importorskip("googleapiclient", reason="needs the extra `cloud`")
    document = Path(client.__file__).parent / "discovery_cache/documents/compute.v1.json"
    schemas = json.loads(document.read_text())["schemas"]
    for kind in filled("gcp.yaml")["available_node_types"].values():
        assert list(unlike(kind["node_config"], "Instance", schemas)) == []
    assert list(unlike({"scheduling": [{"provisioningModel": "SPOT"}]}, "Instance", schemas))


def unlike(given: Any, name: str, schemas: Config) -> Iterator[str]:
    """Where `given` is not the object of that name in a Google discovery document."""
    if not isinstance(given, dict):
        yield f"{name}: not an object: {given}"
        return
    for key, value in given.items():
        known = schemas[name]["properties"].get(key)
        if known is None or value not in known.get("enum", [value]):
            yield f"{name}.{key}: {value}"
        elif "$ref" in known:
            yield from unlike(value, known["$ref"], schemas)
        elif "$ref" in known.get("items", {}):
            for item in value:
                yield from unlike(item, known["items"]["$ref"], schemas)


# --- the autoscaler -----------------------------------------------------------------------------------------


def kuberay_types() -> Config:
    """raycluster.yaml as the autoscaler in the head pod reads it."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = filled("kuberay/raycluster.yaml")
    cluster["metadata"]["namespace"] = "default"
    config: Config = _derive_autoscaling_config_from_ray_cr(cluster)
    return config


READ: dict[str, Callable[[], Config]] = {
    "aws": lambda: prepared(filled("aws.yaml")),
    "gcp": lambda: prepared(filled("gcp.yaml")),
    "kuberay": kuberay_types,
}


def launched(config: Config, workers: int, available: dict[str, float]) -> dict[str, int]:
    """Nodes that Ray's autoscaler v2 would start for so many workers of design_space.yaml."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil as Requests

    read = AutoscalingConfig(config, skip_content_hash=True)
    runtime = yaml.safe_load((ROOT / "sweeps/design_space.yaml").read_text())["runtime"]
    worker = {"CPU": runtime["cpus_per_worker"], "GPU": runtime["gpus_per_worker"]}
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=read.get_node_type_configs(),
        max_num_nodes=read.get_max_num_nodes(),
        resource_requests=Requests.group_by_count([Requests.make(worker)] * workers),
        recoverable_resource_availabilities=available,
    )
    reply = ResourceDemandScheduler(None).schedule(request)
    assert not reply.infeasible_resource_requests
    return {part.instance_type.replace("-", "_"): part.count for part in reply.to_launch}


@pytest.mark.parametrize("where", READ)
def test_workers_come_on_demand_and_spot_comes_first(where: str) -> None:
    """The spot workers alone can hold all of design_space.yaml; what is short for now comes last."""
    config = READ[where]()
    spot = next(name for name in config["available_node_types"] if name.endswith("spot"))
    workers = yaml.safe_load((ROOT / "sweeps/design_space.yaml").read_text())["runtime"]["workers"]
    assert launched(config, 0, {}) == {}
    assert launched(config, 2, {}) == {"gpu_spot": 1}
    assert launched(config, workers, {}) == {"gpu_spot": workers // 2}
    assert launched(config, 2, {spot: 0.0}) == {"gpu_on_demand": 1}


@pytest.mark.parametrize(("event", "lowered"), [("ALLOCATION_TIMEOUT", True), ("ALLOCATION_FAILED", False)])
def test_only_a_node_that_never_came_up_moves_demand_elsewhere(event: str, lowered: bool) -> None:
    """What the README says of on-demand nodes: by themselves with KubeRay, by hand with `ray up`."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated import instance_manager_pb2

    messages: Any = instance_manager_pb2
    monitor = CloudResourceMonitor()
    status = getattr(messages.Instance, event)
    monitor.notify([messages.InstanceUpdateEvent(instance_type="gpu_spot", new_instance_status=status)])
    assert ("gpu_spot" in monitor.get_recoverable_resource_availabilities()) is lowered


# --- KubeRay ------------------------------------------------------------------------------------------------


def complaints(given: Config, schema: Config) -> list[str]:
    import jsonschema  # of Ray's own requirements

    found = jsonschema.Draft202012Validator(schema).iter_errors(given)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
def test_kuberay_file_matches(kind: str) -> None:
    assert complaints(filled(f"kuberay/{kind}.yaml"), kuberay.kinds(pins()["ray"])[kind]) == []


@pytest.mark.parametrize(
    "path",
    ["entrypoint", "backoffLimit", "ttlSecondsAfterFinished", "rayClusterSpec.autoscalerOptions.version"]
    + [f"rayClusterSpec.workerGroupSpecs.0.{key}" for key in ("maxReplicas", "priority", "template")]
    + ["rayClusterSpec.headGroupSpec.template.spec.containers.0.image"],
)
def test_kuberay_typo_is_refused(path: str) -> None:
    job = changed(filled("kuberay/rayjob.yaml"), f"spec.{path}", "typo")
    assert complaints(job, kuberay.kinds(pins()["ray"])["rayjob"])


def test_both_kuberay_files_describe_one_cluster() -> None:
    job, cluster = filled("kuberay/rayjob.yaml"), filled("kuberay/raycluster.yaml")
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    head = cluster["spec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    for group in cluster["spec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == "1"
    store = filled("kuberay/store.yaml")
    assert store["metadata"]["name"] == "edc-store" and store["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.skipif("EDC_KUBERAY_CRD" not in os.environ, reason="no EDC_KUBERAY_CRD=.../ray.io_rayjobs.yaml")
def test_kuberay_files_match_the_crd() -> None:
    crd = yaml.safe_load(Path(os.environ["EDC_KUBERAY_CRD"]).read_text())
    version = next(part for part in crd["spec"]["versions"] if part["name"] == "v1")
    job = kuberay.strict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    given = filled("kuberay/rayjob.yaml")["spec"]
    assert complaints(given, job) == []
    cluster = filled("kuberay/raycluster.yaml")["spec"]
    assert complaints(cluster, job["properties"]["rayClusterSpec"]) == []
    assert complaints(changed(given, "rayClusterSpec.workerGroupSpecs.0.maxReplicas", "typo"), job)


# --- the image, Slurm, the README ---------------------------------------------------------------------------


def test_the_image_has_what_is_pinned() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    (base,) = re.findall(r"^FROM (\S+)$", text, re.M)
    (tested,) = re.findall(r"\(Python (3\.\d+)\)", (ROOT / "constraints.txt").read_text())
    assert re.fullmatch(rf"python:{re.escape(tested)}\.\d+-slim-\w+", base)
    for line in re.findall(r"pip install (.*)$", text, re.M):
        assert "-c constraints.txt" in line or "--no-deps" in line
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()}
    assert {"edc_ray", "sweeps", "pyproject.toml", "constraints.txt"} <= copied
    assert all((ROOT / word).exists() for word in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["cloud"]
    assert {normal(re.split(r"[\[><=]", name)[0]) for name in asked} <= pins().keys()


def test_one_ray_version() -> None:
    import ray

    assert ray.__version__ == pins()["ray"]
    files = [*YAMLS, CLUSTER / "README.md", CLUSTER / "Dockerfile"]
    written = re.compile(r"[Rr]ay(?:Version: \"|==| )(\d+\.\d+\.\d+)")
    named = [(path.name, version) for path in files for version in written.findall(path.read_text())]
    assert {version for _, version in named} == {pins()["ray"]}
    assert {"rayjob.yaml", "raycluster.yaml", "README.md"} <= {name for name, _ in named}


def scripts() -> Iterator[tuple[str, str]]:
    yield "slurm.sbatch", (CLUSTER / "slurm.sbatch").read_text()
    for name in UP:
        for key, lines in filled(f"{name}.yaml").items():
            if key.endswith("_commands"):
                yield from ((f"{name} {key}", line) for line in lines)
    for number, block in enumerate(re.findall(r"^```bash\n(.*?)^```", README, re.M | re.S)):
        yield f"README block {number}", block


@pytest.mark.parametrize(("name", "script"), [pytest.param(*pair, id=pair[0]) for pair in scripts()])
def test_shell_syntax(name: str, script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, f"{name}: {done.stderr}"


def test_the_readme_names_what_exists() -> None:
    """Its files, and a value for each variable that a file waits for; envsubst is told exactly those."""
    for path in re.findall(r"(?:cluster|sweeps)/[\w/.-]+\.\w+|(?:cluster|sweeps)/\w+(?=[ `\n])", README):
        assert (ROOT / path).exists(), path
    exported = set(re.findall(r"(?:export )(\w+)=| (\w+)=(?=\S)", README))
    names = {name for pair in exported for name in pair}
    for path in YAMLS:
        waits = set(re.findall(r"\$\{(\w+)\}", path.read_text()))
        (given,) = set(re.findall(rf"envsubst '([^']+)' < {re.escape(str(path.relative_to(ROOT)))}", README))
        assert set(string.Template(given).get_identifiers()) == waits <= VALUES.keys() & names


# --- the upload ---------------------------------------------------------------------------------------------


def uploaded(folder: Path, to: Path) -> list[str]:
    """What `ray job submit --working-dir FOLDER` puts into its package, by Ray's own code."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    create_package(
        str(folder), to, include_gitignore=True, excludes=get_runtime_env_default_excludes(), logger=None
    )
    with zipfile.ZipFile(to) as package:
        return package.namelist()


def test_the_upload_is_small_and_whole(tmp_path: Path) -> None:
    names = uploaded(ROOT, tmp_path / "package.zip")
    assert (tmp_path / "package.zip").stat().st_size < 5e6
    assert {"edc_ray/sweep.py", "edc_ray/core/data/cifar.py", "sweeps/design_space.yaml"} <= set(names)
    assert not {name.split("/")[0] for name in names} & {".git", ".venv", "store", "data", "runs", "build"}


def test_large_folders_stay_here(tmp_path: Path) -> None:
    """Neither their files nor they themselves: Ray does not even look into them."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    heavy = ["store/recover-0/unit.bin", "data/cifar10/batch", "runs/a/log", "wandb/run", "venv/bin/python"]
    heavy += [".venv/lib/torch.so", ".venv-gpu/lib/torch.so", ".mypy_cache/a", "build/lib/edc_ray/sweep.py"]
    heavy += ["images.safetensors", "edc_ray/labels.parquet", "edc_ray/__pycache__/sweep.pyc", "out.tar.gz"]
    kept = ["edc_ray/sweep.py", "edc_ray/core/data/cifar.py", "sweeps/quickstart.yaml", "pyproject.toml"]
    for name in (*heavy, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (".rayignore", ".gitignore"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    seen: list[Path] = []
    excludes = [_get_excludes(tmp_path, get_runtime_env_default_excludes())]
    _dir_travel(tmp_path, excludes, seen.append, include_gitignore=True)
    folders = ["", "edc_ray", "edc_ray/core", "edc_ray/core/data", "sweeps"]
    expected = {tmp_path / name for name in (*kept, *folders, ".rayignore", ".gitignore")}
    assert set(seen) == expected
