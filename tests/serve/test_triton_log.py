"""Triton's words, copied from real logs, and what is made of them."""

# ruff: noqa: E501, W291

from __future__ import annotations

import pytest

from cofi_deploy.serve.triton_log import ModelNews, explain, last_error, model_events

HARMLESS = """\
W1124 03:06:30.156191 2772 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory, pinned memory pool will not be available: CUDA driver version is insufficient for CUDA runtime version"
I1124 03:06:30.156293 2772 cuda_memory_manager.cc:117] "CUDA memory pool disabled"
E1124 03:06:30.156454 2772 server.cc:241] "CudaDriverHelper has not been initialized."
I1124 03:06:30.159590 2772 model_lifecycle.cc:472] "loading: m:1"
E1124 03:06:30.890777 2772 ensemble_scheduler.cc:1468] "unable to create stream for e: CUDA driver version is insufficient for CUDA runtime version"
I1124 03:06:30.890893 2772 server.cc:604] 
+------------------+------+
| Repository Agent | Path |
+------------------+------+
Error: Failed to initialize NVML
W1124 03:06:30.896462 2772 metrics.cc:798] "DCGM unable to start: DCGM initialization error"
I1124 03:06:31.027535 2772 model_lifecycle.cc:839] "successfully loaded 'm'"
"""
PACKAGE = r"""
E1124 03:29:48.015297 19911 backend_model.cc:692] "ERROR: Failed to create instance: ModuleNotFoundError: No module named 'nosuchpkg'\n\nAt:\n  /models/m/1/model.py(1): <module>\n  <frozen importlib._bootstrap>(241): _call_with_frames_removed\n"
E1124 03:29:48.015403 19911 model_lifecycle.cc:642] "failed to load 'm' version 1: Internal: ModuleNotFoundError: No module named 'nosuchpkg'\n\nAt:\n  /models/m/1/model.py(1): <module>\n  <frozen importlib._bootstrap>(241): _call_with_frames_removed\n"
error: creating server: Internal - failed to load all models
"""
CHECKSUM = r"""
E1124 03:52:02.700014 7022 model_lifecycle.cc:642] "failed to load 'tiny' version 2: Internal: TritonModelException: '/models/tiny/2/model.onnx' has sha256 1b8aa7cd9c3c, but 20c0adb6ab7a was recorded when it was written: it is corrupt, truncated or was replaced; export the version again"
"""
BACKEND = """
E1124 03:29:46.632092 19893 model_lifecycle.cc:642] "failed to load 'm' version 1: Invalid argument: unable to find backend library for backend 'onnxruntime', try specifying runtime on the model configuration."
error: creating server: Internal - failed to load all models
"""
TYPING_ERROR = """
E1124 03:29:50.448379 20012 model_repository_manager.cc:1460] "Poll failed for model directory 'm': failed to read text proto from /models/m/config.pbtxt"
error: creating server: Internal - failed to load all models
"""
RENAMED = """
E1124 03:29:51.491204 20030 model_repository_manager.cc:1460] "Poll failed for model directory 'm': unexpected directory name 'm' for model 'mm', directory name must equal model name"
"""
NO_VERSION = """
E1124 03:29:52.537336 20048 model_repository_manager.cc:724] "failed to load model 'm': at least one version must be available under the version policy of model 'm'"
"""
PORT = """
E1124 03:30:33.719246 20504 main.cc:257] "failed to start HTTP service: Unavailable - Socket '127.0.0.1:8000' already in use "
"""
SHARED_MEMORY = """
E1124 03:30:48.907230 20795 model_lifecycle.cc:642] "failed to load 'm' version 1: Internal: Unable to initialize shared memory key 'ctest5bccf286-9ce2-4794-b883-646c2a34d7eb' to requested size (99999999999999 bytes). If you are running Triton inside docker, use '--shm-size' flag to control the shared memory region size. Each Python backend model instance requires at least 1 MB of shared memory. Error: No space left on device"
"""
CACHE = """
error: creating server: Invalid argument - unable to find 'libtritoncache_local.so' for cache. Searched: /opt/tritonserver/caches
"""
NO_GPU = """
E1124 03:30:50.096999 20841 model_lifecycle.cc:642] "failed to load 'm' version 1: Invalid argument: instance group m_0 of model m has kind KIND_GPU but no GPUs are available"
"""
ENSEMBLE = """
E1124 03:30:50.211151 20861 model_repository_manager.cc:703] "Invalid argument: ensemble e contains models that are not available or ambiguous: t"
error: creating server: Internal - failed to load all models
"""
NO_REPOSITORY = """
I1124 03:30:17.710499 20225 server.cc:302] "No server context available. Exiting immediately."
error: creating server: Internal - failed to stat file /models
"""
# As users of server 2.42 (container 24.01) reported it: github.com, triton-inference-server/server
# issue 7613. No server with TensorRT can be started where these tests run.
ENGINE = """
E0912 02:00:56.166591 1 logging.cc:40] 1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::46] Error Code 1: Serialization (Serialization assertion stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: 236, Serialized Engine Version: 239)
I0912 02:00:56.167397 1 tensorrt.cc:274] TRITONBACKEND_ModelFinalize: delete model state
E0912 02:00:56.167417 1 model_lifecycle.cc:630] failed to load 'det' version 1: Internal: unable to load plan file to auto complete config: /models/det/1/model.plan
"""
LIBRARY = """
/opt/server/bin/tritonserver: error while loading shared libraries: libb64.so.0d: cannot open shared object file: No such file or directory
"""
STUB = """
/opt/backends/python/triton_python_backend_stub: error while loading shared libraries: libpython3.12.so.1.0: cannot open shared object file: No such file or directory
"""


@pytest.mark.parametrize(
    ("log", "words", "meaning"),
    [
        (PACKAGE, "m version 1: ModuleNotFoundError: No module named 'nosuchpkg'", "no package"),
        (CHECKSUM, "tiny version 2: TritonModelException: '/models/tiny/2/model.onnx' has", "export"),
        (BACKEND, "m version 1: unable to find backend library for", "no backend 'onnxruntime'"),
        (TYPING_ERROR, "m: failed to read text proto from", "/models/m/config.pbtxt has a typing"),
        (RENAMED, "m: unexpected directory name 'm' for model 'mm'", "export with --name"),
        (NO_VERSION, "m: at least one version must be available", "has no version folder"),
        (PORT, "failed to start HTTP service: Unavailable - Socket", "took 127.0.0.1:8000 while"),
        (SHARED_MEMORY, "m version 1: Unable to initialize shared memory key", "free /dev/shm"),
        (CACHE, "error: creating server: Invalid argument - unable to find", "leave --cache-mib out"),
        (NO_GPU, "m version 1: instance group m_0 of model m has kind KIND_GPU", "for a GPU"),
        (ENSEMBLE, "Invalid argument: ensemble e contains models", "the ensemble needs t, which"),
        (NO_REPOSITORY, "error: creating server: Internal - failed to stat", "/models does not exist"),
        (ENGINE, "1: [stdArchiveReader.cpp", "built for another TensorRT version or GPU"),
        (LIBRARY, "/opt/server/bin/tritonserver: error while loading", "needs the library libb64.so.0d"),
        (STUB, "/opt/backends/python/triton_python_backend_stub", "not here (libpython3.12.so.1.0:"),
    ],
    ids=lambda value: None if "\n" in value else value[:24],
)  # fmt: skip
def test_a_cause_is_told_in_tritons_words_and_explained(log: str, words: str, meaning: str) -> None:
    found = last_error(HARMLESS + log)
    assert found.startswith(words)
    assert "\n" not in found
    assert "frozen importlib" not in found
    assert meaning in explain(found)


def test_an_engine_that_does_not_fit_is_told_with_both_versions_and_the_model() -> None:
    words = last_error(ENGINE)
    assert "Current Version: 236, Serialized Engine Version: 239" in words
    assert words.endswith("det version 1: unable to load plan file to auto complete config: "
                          "/models/det/1/model.plan")  # fmt: skip


def test_empty_answers_are_explained_with_numpy_2() -> None:
    # What a request gets from a server whose Python models run with numpy 2.2.
    answer = '{"error":"output tensor shape does not match size of output for \'logits\'"}'
    assert "'numpy<2'" in explain(answer)


def test_what_a_server_without_a_gpu_always_says_is_no_error() -> None:
    assert last_error(HARMLESS) == ""
    assert not [event for event in model_events(HARMLESS) if event.kind == "refused"]


def test_a_model_that_loads_in_the_end_is_no_error() -> None:
    later = "I1124 03:30:00.890815 2772 model_lifecycle.cc:839] \"successfully loaded 'tiny'\"\n"
    other = CHECKSUM.replace("tiny", "other")
    assert last_error(CHECKSUM + other + later).startswith("other version 2: ")


def test_words_that_are_not_known_speak_for_themselves() -> None:
    assert explain("the moon is full") == ""
    assert last_error("") == ""


def test_news_tell_each_change_once() -> None:
    news = ModelNews()
    loading = 'I1124 03:40:00.000001 1 model_lifecycle.cc:472] "loading: m:2"\n'
    loaded = "I1124 03:40:01.000001 1 model_lifecycle.cc:839] \"successfully loaded 'm'\"\n"
    gone = (
        "I1124 03:40:02.000001 1 model_lifecycle.cc:624] \"successfully unloaded 'm' version 1\"\n"
    )
    assert news.read(loading) == []
    assert news.read(loaded + gone) == ["m version 2 is loaded", "m version 1 is unloaded"]
    (refused,) = news.read(TYPING_ERROR)
    assert refused.startswith("m version 2 is refused: failed to read text proto")
    assert refused.endswith("export the model again; what was served before goes on")
    assert news.read(TYPING_ERROR) == []
    assert news.read(loading + loaded) == ["m version 2 is loaded"]
