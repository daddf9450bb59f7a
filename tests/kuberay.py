"""A strict schema of the files of cluster/kuberay, and KubeRay's own made strict."""

from typing import Any

Config = dict[str, Any]
TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}


def only(required: str = "", **known: Config) -> Config:
    """A schema of an object with no other keys."""
    return {
        "type": "object",
        "properties": known,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(item: Config) -> Config:
    return {"type": "array", "items": item, "minItems": 1}


TEXTS = {"type": "object", "additionalProperties": TEXT}
AMOUNTS = only("requests limits", requests=TEXTS, limits=TEXTS)
EXPRESSION = only("key operator", key=TEXT, operator={"enum": ["In", "NotIn"]}, values=listed(TEXT))
TERMS = listed(only("matchExpressions", matchExpressions=listed(EXPRESSION)))
NODES = only(
    requiredDuringSchedulingIgnoredDuringExecution=only("nodeSelectorTerms", nodeSelectorTerms=TERMS)
)
EXEC = only("exec", exec=only("command", command=listed(TEXT)))
CONTAINER = only(
    "name image resources volumeMounts",
    name=TEXT,
    image={"type": "string", "pattern": "^[^$]+-[cg]pu$"},
    ports=listed(only("containerPort name", containerPort=COUNT, name=TEXT)),
    lifecycle=only(postStart=EXEC),
    resources=AMOUNTS,
    volumeMounts=listed(only("name mountPath", name=TEXT, mountPath={"const": "/mnt/edc-store"})),
)
CLAIM = only("claimName", claimName={"const": "edc-store"})
POD = only(
    "affinity containers volumes",
    affinity=only("nodeAffinity", nodeAffinity=NODES),
    tolerations=listed(
        only("key operator effect", key=TEXT, operator={"const": "Exists"}, effect={"const": "NoSchedule"})
    ),
    containers=listed(CONTAINER),
    securityContext=only(fsGroup=COUNT),
    volumes=listed(only("name persistentVolumeClaim", name=TEXT, persistentVolumeClaim=CLAIM)),
)
TEMPLATE = only("spec", spec=POD)
GROUP = only(
    "groupName replicas minReplicas maxReplicas priority rayStartParams template",
    groupName={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
    replicas={"const": 0},
    minReplicas={"const": 0},
    maxReplicas=COUNT,
    priority=COUNT,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
AUTOSCALER = only(
    "version idleTimeoutSeconds",
    version={"const": "v2"},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=COUNT,
    env=listed(only("name value", name=TEXT, value=TEXT)),
    resources=AMOUNTS,
)


def kinds(ray: str) -> dict[str, Config]:
    """The schemas of a RayJob and of a RayCluster for that version of Ray."""
    spec = only(
        "rayVersion enableInTreeAutoscaling autoscalerOptions authOptions headGroupSpec workerGroupSpecs",
        rayVersion={"const": ray},
        enableInTreeAutoscaling={"const": True},
        authOptions=only("mode", mode={"enum": ["token", "disabled"]}),
        autoscalerOptions=AUTOSCALER,
        headGroupSpec=only("rayStartParams template", rayStartParams=TEXTS, template=TEMPLATE),
        workerGroupSpecs=listed(GROUP),
    )
    job = only(
        "entrypoint submissionMode backoffLimit rayClusterSpec",
        entrypoint={"const": "python -m edc_ray.sweep sweeps/design_space.yaml"},
        submissionMode={"const": "SidecarMode"},  # it fails with the head,
        backoffLimit={"type": "integer", "minimum": 1},  # and then this starts a new cluster
        shutdownAfterJobFinishes={"const": True},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=spec,
    )
    named = only("name", name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$"})
    v1 = {"const": "ray.io/v1"}
    return {
        "rayjob": only("spec", apiVersion=v1, kind={"const": "RayJob"}, metadata=named, spec=job),
        "raycluster": only("spec", apiVersion=v1, kind={"const": "RayCluster"}, metadata=named, spec=spec),
    }


def strict(schema: Config) -> Config:
    """A schema of a CRD as JSON schema, in which an unknown key is an error as `kubectl` makes it one."""
    out = {key: value for key, value in schema.items() if not key.startswith(("x-kubernetes", "nullable"))}
    if schema.get("x-kubernetes-int-or-string"):
        out = {"type": ["integer", "string"]}
    elif schema.get("nullable"):
        out["type"] = [schema["type"], "null"]
    if "properties" in schema:
        out["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            out.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            out[key] = strict(schema[key])
    return out
