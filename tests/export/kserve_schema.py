"""KServe's published types as a JSON schema, for what our InferenceService uses of them.

KServe's Python package holds no CRD, but classes that are generated from the same OpenAPI document.
Installed, it brings a web server and much else along, so the fields of the few types in question
are kept in `kserve_fields.json`; what is Kubernetes' own (probes, volumes, ...) is looked up in
kubernetes-validate. To take the fields of another release:

    pip download --no-deps kserve==0.21.0
    python -m tests.export.kserve_schema kserve-0.21.0-py3-none-any.whl
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FIELDS = Path(__file__).with_name("kserve_fields.json")
TYPES = (
    "V1beta1InferenceService",
    "V1beta1InferenceServiceSpec",
    "V1beta1PredictorSpec",
    "V1beta1ModelSpec",
    "V1beta1ModelFormat",
)
_REQUIRED = re.compile(r"Invalid value for `(\w+)`, must not be `None`")
_PLAIN = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}


def inference_service_validator(kubernetes: str) -> Draft202012Validator:
    """Checks an InferenceService strictly: unknown fields are refused, at every depth.

    Args:
        kubernetes: Version whose types are referred to, such as "1.37".
    """
    package = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    shared = package / f"v{kubernetes}.0-local-strict" / "_definitions.json"
    core = json.loads(shared.read_text("utf-8"))
    fields = json.loads(FIELDS.read_text("utf-8"))["types"]
    schema = {
        "$id": "https://kubernetes.io/api/kserve.json",
        "$ref": f"#/$defs/{TYPES[0]}",
        "$defs": {name: _object(content, core["$defs"]) for name, content in fields.items()},
    }
    return Draft202012Validator(schema, registry=Resource.from_contents(core) @ Registry())


def _object(content: dict[str, Any], core: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _schema(kind, core) for name, kind in content["fields"].items()}
    return {
        "type": "object",
        "properties": properties,
        "required": content["required"],
        "additionalProperties": False,
    }


def _schema(kind: str, core: dict[str, Any]) -> dict[str, Any]:
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    if kind in TYPES:
        return {"$ref": f"#/$defs/{kind}"}
    if match := re.fullmatch(r"list\[(\w+)\]", kind):
        return {"type": "array", "items": _schema(match[1], core)}
    for package in ("io.k8s.api.core.v1", "io.k8s.apimachinery.pkg.apis.meta.v1"):
        if (name := f"{package}.{kind.removeprefix('V1')}") in core:
            return {"$ref": f"/api/_definitions.json#/$defs/{name}"}
    return {"not": {}}  # of a type that is kept neither here nor there: not for us to use


def main(wheel: Path) -> None:
    """Take the fields from a wheel of the package kserve, without importing it."""
    with zipfile.ZipFile(wheel) as archive:
        types = {name: _fields(_source(archive, name)) for name in TYPES}
    document = {"source": f"openapi_types of {wheel.name}, Apache-2.0", "types": types}
    FIELDS.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _source(archive: zipfile.ZipFile, name: str) -> str:
    wanted = name.lower()
    for path in archive.namelist():
        stem = path.rpartition("/")[2].removesuffix(".py").replace("_", "")
        if path.startswith("kserve/models/") and stem == wanted:
            return archive.read(path).decode()
    raise SystemExit(f"no {name} in {archive.filename}")


def _fields(source: str) -> dict[str, Any]:
    (model,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in model.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    names = values["attribute_map"]
    return {
        "fields": {names[key]: kind for key, kind in values["openapi_types"].items()},
        "required": sorted({names[key] for key in _REQUIRED.findall(source)}),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
