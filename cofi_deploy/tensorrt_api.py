"""What we use of TensorRT's Python module, by the types that are published for it.

`tensorrt` (10.x, 11.x) and `tensorrt-rtx` have one interface; which of them a variable holds is
decided at run time. `make check` holds this against the package `tensorrt-stubs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import tensorrt as trt


class Published(Protocol):
    """Classes and enumerations of the module."""

    @property
    def Builder(self) -> type[trt.Builder]: ...  # noqa: D102, N802
    @property
    def BuilderFlag(self) -> type[trt.BuilderFlag]: ...  # noqa: D102, N802
    @property
    def DataType(self) -> type[trt.DataType]: ...  # noqa: D102, N802
    @property
    def Dims(self) -> type[trt.Dims]: ...  # noqa: D102, N802
    @property
    def HardwareCompatibilityLevel(  # noqa: D102, N802
        self,
    ) -> type[trt.HardwareCompatibilityLevel]: ...
    @property
    def ILogger(self) -> type[trt.ILogger]: ...  # noqa: D102, N802
    @property
    def IProfiler(self) -> type[trt.IProfiler]: ...  # noqa: D102, N802
    @property
    def LayerInformationFormat(self) -> type[trt.LayerInformationFormat]: ...  # noqa: D102, N802
    @property
    def Logger(self) -> type[trt.Logger]: ...  # noqa: D102, N802
    @property
    def MemoryPoolType(self) -> type[trt.MemoryPoolType]: ...  # noqa: D102, N802
    @property
    def NetworkDefinitionCreationFlag(  # noqa: D102, N802
        self,
    ) -> type[trt.NetworkDefinitionCreationFlag]: ...
    @property
    def OnnxParser(self) -> type[trt.OnnxParser]: ...  # noqa: D102, N802
    @property
    def OnnxParserRefitter(self) -> type[trt.OnnxParserRefitter]: ...  # noqa: D102, N802
    @property
    def ProfilingVerbosity(self) -> type[trt.ProfilingVerbosity]: ...  # noqa: D102, N802
    @property
    def Refitter(self) -> type[trt.Refitter]: ...  # noqa: D102, N802
    @property
    def Runtime(self) -> type[trt.Runtime]: ...  # noqa: D102, N802
    @property
    def TensorIOMode(self) -> type[trt.TensorIOMode]: ...  # noqa: D102, N802
    @property
    def SerializationFlag(self) -> type[trt.SerializationFlag]: ...  # noqa: D102, N802


class TensorRt(Published, Protocol):
    """The module itself; its version is not in the published types."""

    @property
    def __version__(self) -> str: ...


if TYPE_CHECKING:
    _published: Published = trt
