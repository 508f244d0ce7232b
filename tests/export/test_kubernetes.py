"""Kubernetes manifests: valid by the published schemas, sized by the options, never overwritten."""

from __future__ import annotations

import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from cofi_deploy.atomic import atomic_directory
from cofi_deploy.errors import RepositoryError, UsageError
from cofi_deploy.export.kubernetes import PACKAGES, pod_size, resource_name, write_kubernetes
from cofi_deploy.export.triton_config import TritonOptions
from cofi_deploy.serve import triton_environment
from cofi_deploy.triton_image import TRITON_IMAGE
from tests.export.kserve_schema import inference_service_validator
from tests.export.served_folders import model_folders

CPU = TritonOptions(instances=2, threads=3)
GPU = TritonOptions(device="gpu")
MANIFESTS = ("deployment.yaml", "service.yaml", "hpa.yaml", "pdb.yaml")
RELEASES = ("1.30", "1.37")  # the newest that is published here, and what is still met
MODEL = "SST2_s95.v1"
APP = "triton-sst2-s95-v1"


@pytest.fixture(scope="module", params=[CPU, GPU], ids=["cpu", "gpu"])
def options(request):
    return request.param


@pytest.fixture(scope="module")
def folder(options, tmp_path_factory):
    return written(tmp_path_factory.mktemp("kubernetes") / "models", options)


def written(repository: Path, options: TritonOptions) -> Path:
    with atomic_directory(repository) as directory:
        model_folders(MODEL)(directory)
    return write_kubernetes(repository, MODEL, options)


def documents(path: Path) -> list[dict]:
    return list(yaml.safe_load_all(path.read_text()))


def only(path: Path) -> dict:
    (document,) = documents(path)
    return document


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_every_manifest_is_valid_and_has_no_unknown_field(folder, name, release):
    for document in documents(folder / name):
        assert kubernetes_validate.validate(document, release, strict=True) == release


@pytest.mark.parametrize("release", RELEASES)
def test_the_inference_service_is_valid_by_the_types_of_kserve(folder, release):
    service = only(folder / "kserve-inference-service.yaml")
    inference_service_validator(release).validate(service)
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    model = service["spec"]["predictor"]["model"]
    assert (model["modelFormat"], model["protocolVersion"]) == ({"name": "triton"}, "v2")
    assert model["storageUri"] == f"pvc://{APP}/models"


@pytest.mark.parametrize(
    "place",
    [
        ("spec", "predictors"),
        ("spec", "predictor", "replicas"),
        ("spec", "predictor", "model", "storageURI"),
        ("spec", "predictor", "model", "readinessProbe", "httpget"),
        ("spec", "predictor", "securityContext", "runAsRoot"),
        ("spec", "predictor", "autoScaling"),
    ],
    ids=".".join,
)
def test_the_check_of_the_inference_service_can_fail(folder, place):
    service = only(folder / "kserve-inference-service.yaml")
    inner = service
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = {}
    assert not inference_service_validator("1.37").is_valid(service)


def test_the_pods_of_one_model_are_selected_everywhere(folder):
    deployment = only(folder / "deployment.yaml")
    label = {"app.kubernetes.io/name": APP}
    assert deployment["spec"]["selector"]["matchLabels"] == label
    assert label.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    for service in documents(folder / "service.yaml"):
        assert service["spec"]["selector"] == label
    assert only(folder / "pdb.yaml")["spec"]["selector"]["matchLabels"] == label
    assert only(folder / "hpa.yaml")["spec"]["scaleTargetRef"]["name"] == APP


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes(folder, options):
    (rule,) = only(folder / "prometheus-adapter-values.yaml")["rules"]["custom"]
    (metric,) = only(folder / "hpa.yaml")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert metric["pods"]["target"]["averageValue"] == str(options.instances)
    assert rule["seriesQuery"].startswith("nv_inference_queue_duration_us{")
    assert rule["metricsQuery"] == (
        f'sum(rate(<<.Series>>{{<<.LabelMatchers>>,model="{MODEL}"}}[1m])) by (<<.GroupBy>>) / 1e6'
    )


def test_a_pod_has_time_to_answer_what_it_has_taken(folder):
    pod = only(folder / "deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    _, drain = container["lifecycle"]["preStop"]["exec"]["command"]
    (exit_s,) = (a.partition("=")[2] for a in container["args"] if "exit-timeout" in a)
    assert pod["terminationGracePeriodSeconds"] > int(drain) + int(exit_s)
    assert only(folder / "deployment.yaml")["spec"]["strategy"]["rollingUpdate"] == {
        "maxUnavailable": 0,
        "maxSurge": 1,
    }


def test_no_pod_can_write_outside_of_memory_or_become_root(folder):
    pod = only(folder / "deployment.yaml")["spec"]["template"]["spec"]
    predictor = only(folder / "kserve-inference-service.yaml")["spec"]["predictor"]
    for spec, container in ((pod, pod["containers"][0]), (predictor, predictor["model"])):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        mounted = {item["mountPath"] for item in container["volumeMounts"]}
        assert mounted == {"/tmp", "/dev/shm"}
        assert {item["name"] for item in spec["volumes"]} == {
            item["name"] for item in container["volumeMounts"]
        }


def test_cores_are_instances_times_threads_and_one(tmp_path):
    folder = written(tmp_path / "models", CPU)
    (container,) = only(folder / "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"]["cpu"] == "7"
    assert {"name": "OMP_NUM_THREADS", "value": "3"} in container["env"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_a_model_on_a_gpu_asks_for_one(tmp_path):
    folder = written(tmp_path / "models", GPU)
    pod = only(folder / "deployment.yaml")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["tolerations"][0]["key"] == "nvidia.com/gpu"
    predictor = only(folder / "kserve-inference-service.yaml")["spec"]["predictor"]
    assert predictor["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_memory_grows_with_model_and_instances():
    def mib(**changes: object) -> int:
        return pod_size(TritonOptions(threads=1, **changes), model_bytes=100 * 2**20).memory_mib

    # 1024 + 2 x 128 of Python + 384 shared + 3 x 100 + 256 = 2220, rounded up to 256
    assert mib() == 2304
    assert mib(instances=4) >= 2304 + 3 * (300 + 256) - 256
    assert mib(backend="python") > mib()


def test_the_image_holds_what_our_tests_serve_with(folder):
    tested = triton_environment.requirements()
    assert set(PACKAGES) <= set(tested)
    dockerfile = (folder / "Dockerfile").read_text()
    assert f"FROM {TRITON_IMAGE} AS server\n" in dockerfile
    assert " ".join(PACKAGES) in dockerfile
    (line,) = (line for line in dockerfile.splitlines() if line.startswith("COPY"))
    source, target = json.loads(line.partition(" ")[2].partition(" ")[2])
    assert (folder.parent / source).is_dir()
    assert target == "/models/"


def test_kustomize_names_files_that_are_there_and_the_image_of_the_deployment(folder):
    kustomization = only(folder / "kustomization.yaml")
    assert tuple(kustomization["resources"]) == MANIFESTS
    assert all((folder / name).is_file() for name in kustomization["resources"])
    (image,) = kustomization["images"]
    (container,) = only(folder / "deployment.yaml")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"{image['name']}:{image['newTag']}"


def test_the_manifests_lie_beside_the_repository_and_nothing_is_left_to_fill_in(folder):
    assert folder.name == "models-kubernetes"
    for path in folder.iterdir():
        assert not re.search(r"\{\{|\}\}|\{%", path.read_text()), path


def test_an_image_is_numbered_like_the_version_in_it(tmp_path):
    folder = written(tmp_path / "models", CPU)
    (tmp_path / "models" / MODEL / "1").rename(tmp_path / "models" / MODEL / "12")
    folder = write_kubernetes(tmp_path / "models", MODEL, CPU)
    assert only(folder / "kustomization.yaml")["images"][0]["newTag"] == "12"


def test_edited_manifests_are_never_overwritten(tmp_path):
    folder = written(tmp_path / "models", CPU)
    write_kubernetes(tmp_path / "models", MODEL, CPU)
    hpa = folder / "hpa.yaml"
    hpa.write_text(hpa.read_text().replace("maxReplicas: 8", "maxReplicas: 20"))
    words = r"would be replaced, but was edited since it was written \('.*hpa.yaml' has sha256"
    with pytest.raises(RepositoryError, match=words):
        write_kubernetes(tmp_path / "models", MODEL, CPU)
    assert "maxReplicas: 20" in hpa.read_text()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "models-kubernetes").mkdir()
    (tmp_path / "models-kubernetes" / "mine.yaml").touch()
    with pytest.raises(UsageError, match=r"holds 'mine.yaml' and nothing that cofi-deploy wrote"):
        written(tmp_path / "models", CPU)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("sst2", "triton-sst2"),
        ("9lives", "triton-9lives"),
        ("A__b..c-", "triton-a-b-c"),
        ("x" * 80, "triton-" + "x" * 40),
    ],
)
def test_a_name_is_one_that_kubernetes_takes(model, name):
    assert resource_name(model) == name
    assert len(f"{name}-pods") <= 63
