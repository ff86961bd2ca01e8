# ruff: noqa: N802 - the names of the methods are the contract's
"""The models themselves over the Open Inference Protocol, as Triton and KServe serve theirs: tensors in, tensors out.

A raw answer is no verdict: no image, study or person stands behind the tensor, so it is counted and not recorded. Who
may ask is named in the settings; calls of others are refused and recorded as such. Every answer names what gave it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.inference import meters, tensors
from services.inference.backends import OUTPUTS
from services.inference.batching import Batching
from services.inference.preprocessing import GRID
from services.inference.registry import CHANNELS, Answer, Model
from shared.build import software_build
from shared.errors import ErrorCode, StepwedgeError
from stepwedge.open_inference.v2 import open_inference_pb2 as oip
from stepwedge.open_inference.v2 import open_inference_pb2_grpc

SERVICE: Final = "inference.GRPCInferenceService"
LARGEST_BATCH: Final = 8
"""Images in one request at most: their masks fill half of the longest message."""
_INPUT: Final = (-1, 1, GRID, GRID)
_EXTENSIONS: Final = ("model_repository", "model_configuration", "statistics")


class OpenInferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """inference.GRPCInferenceService.

    Parameters
    ----------
    models
        What is served; of several versions of one name the first is the one that is meant where none is named.
    workers
        Threads in which models run.
    batching
        How requests are put together; only told of here.
    """

    def __init__(self, models: Sequence[Model], workers: Executor, batching: Batching | None = None) -> None:
        self._models = list(models)
        self._workers = workers
        self._batching = batching or Batching()
        self._statistics = {(model.name, model.version): _Statistics() for model in models}

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Any) -> oip.ServerLiveResponse:
        """A server that answers is live."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Any) -> oip.ServerReadyResponse:
        """Models are loaded and tested before the port is opened."""
        return oip.ServerReadyResponse(ready=bool(self._models))

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Any) -> oip.ModelReadyResponse:
        """Whether there is such a model."""
        return oip.ModelReadyResponse(ready=any(self._named(request.name, request.version)))

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Any) -> oip.ServerMetadataResponse:
        """What this is."""
        return oip.ServerMetadataResponse(name="stepwedge", version=software_build(), extensions=_EXTENSIONS)

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Any) -> oip.ModelMetadataResponse:
        """What a model takes and gives."""
        model = self._model(request.name, request.version)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=model.name,
            versions=[one.version for one in self._named(model.name, "")],
            platform=model.platform,
            inputs=[tensor(name="image", datatype=tensors.FP32, shape=_INPUT)],
            outputs=[tensor(name=name, datatype=tensors.FP32, shape=(-1, *dims)) for name, dims in _outputs(model)],
        )

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Any) -> oip.ModelConfigResponse:
        """How a model is served, and which file it is."""
        model = self._model(request.name, request.version)
        config = oip.ModelConfig(
            name=model.name,
            platform=model.platform,
            backend=model.platform.partition("_")[0],
            max_batch_size=LARGEST_BATCH,
            input=[oip.ModelInput(name="image", data_type=oip.TYPE_FP32, dims=_INPUT[1:])],
            output=[oip.ModelOutput(name=name, data_type=oip.TYPE_FP32, dims=dims) for name, dims in _outputs(model)],
            parameters={name: oip.ModelParameter(string_value=value) for name, value in _pins(model)},
        )
        if self._batching.max_batch_size > 1:
            config.dynamic_batching.preferred_batch_size.extend(self._batching.preferred_batch_size)
            config.dynamic_batching.max_queue_delay_microseconds = self._batching.max_queue_delay_microseconds
        return oip.ModelConfigResponse(config=config)

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        """Have a model answer; the parameters of the answer name the file, its surroundings, and both digests."""
        model = self._model(request.model_name, request.model_version)
        statistics = self._statistics[model.name, model.version]
        began = time.perf_counter_ns()
        try:
            loop = asyncio.get_running_loop()
            response = await loop.run_in_executor(self._workers, self._infer, model, request, statistics)
        except BaseException:
            statistics.failed.add(time.perf_counter_ns() - began)
            meters.OPEN_INFERENCE.labels(model.name, model.version, "failed").inc()
            raise
        statistics.answered.add(time.perf_counter_ns() - began)
        meters.OPEN_INFERENCE.labels(model.name, model.version, "answered").inc()
        return response

    async def ModelStatistics(self, request: oip.ModelStatisticsRequest, context: Any) -> oip.ModelStatisticsResponse:
        """What models did since the start."""
        chosen = self._models if not request.name else [*self._named(request.name, request.version)]
        if not chosen:
            raise _absent()
        told = [self._statistics[one.name, one.version].message(one) for one in _in_order(chosen)]
        return oip.ModelStatisticsResponse(model_stats=told)

    async def RepositoryIndex(self, request: oip.RepositoryIndexRequest, context: Any) -> oip.RepositoryIndexResponse:
        """Which models there are; all are ready, for what fails its test is not loaded."""
        index = oip.RepositoryIndexResponse.ModelIndex
        if request.repository_name:
            raise StepwedgeError(ErrorCode.ERROR_CODE_INVALID_REQUEST, "there is one repository, which has no name")
        return oip.RepositoryIndexResponse(
            models=[index(name=one.name, version=one.version, state="READY") for one in _in_order(self._models)]
        )

    async def RepositoryModelLoad(self, request: oip.RepositoryModelLoadRequest, context: Any) -> Any:
        """Refused."""
        raise _fixed()

    async def RepositoryModelUnload(self, request: oip.RepositoryModelUnloadRequest, context: Any) -> Any:
        """Refused."""
        raise _fixed()

    def _infer(self, model: Model, request: oip.ModelInferRequest, statistics: _Statistics) -> oip.ModelInferResponse:
        """The blocking part."""
        began = time.perf_counter_ns()
        names = tensors.wanted(request, OUTPUTS)
        images = tensors.of_request(request, "image", _INPUT, LARGEST_BATCH)
        taken = time.perf_counter_ns()
        found = model.run(images)
        ran = time.perf_counter_ns()
        response = tensors.response_of(
            model.name, model.version, request, {name: getattr(found, name) for name in names}
        )
        digests = [Answer(*one).sha256() for one in zip(*found, strict=True)]
        output = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        told = [*_pins(model), ("input_sha256", _digest(images)), ("output_sha256", output)]
        for name, value in told:
            response.parameters[name].string_param = value
        statistics.ran(len(images), taken - began, ran - taken, time.perf_counter_ns() - ran)
        return response

    def _named(self, name: str, version: str) -> Iterator[Model]:
        return (one for one in self._models if one.name == name and version in ("", one.version))

    def _model(self, name: str, version: str) -> Model:
        found = next(self._named(name, version), None)
        if found is None:
            raise _absent()
        return found


class _Duration:
    """How often, and how long together, nanoseconds."""

    def __init__(self) -> None:
        self.count = self.ns = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    def message(self) -> oip.StatisticDuration:
        return oip.StatisticDuration(count=self.count, ns=self.ns)


class _Statistics:
    """Of one model. Written by several threads: a lost count is no harm, and the metrics have their own."""

    def __init__(self) -> None:
        self.answered, self.failed = _Duration(), _Duration()
        self._input, self._model, self._output = _Duration(), _Duration(), _Duration()
        self._sizes: dict[int, tuple[_Duration, _Duration, _Duration]] = {}
        self._images = self._last = 0

    def ran(self, size: int, taking: int, running: int, giving: int) -> None:
        """Count one request of `size` images; times in nanoseconds."""
        self._images += size
        self._last = time.time_ns() // 1_000_000
        stages = self._sizes.setdefault(size, (_Duration(), _Duration(), _Duration()))
        for durations in ((self._input, self._model, self._output), stages):
            for duration, ns in zip(durations, (taking, running, giving), strict=True):
                duration.add(ns)

    def message(self, model: Model) -> oip.ModelStatistics:
        """As the protocol tells it."""
        return oip.ModelStatistics(
            name=model.name,
            version=model.version,
            last_inference=self._last,
            inference_count=self._images,
            execution_count=self._model.count,
            inference_stats=oip.InferStatistics(
                success=self.answered.message(),
                fail=self.failed.message(),
                compute_input=self._input.message(),
                compute_infer=self._model.message(),
                compute_output=self._output.message(),
            ),
            batch_stats=[
                oip.InferBatchStatistics(
                    batch_size=size,
                    compute_input=taking.message(),
                    compute_infer=running.message(),
                    compute_output=giving.message(),
                )
                for size, (taking, running, giving) in sorted(self._sizes.items())
            ],
        )


def _outputs(model: Model) -> list[tuple[str, tuple[int, ...]]]:
    """Outputs and their sizes without that of the batch."""
    sizes = (len(CHANNELS), GRID // 2, GRID // 2), (model.flags,), (model.features,)
    return list(zip(OUTPUTS, sizes, strict=True))


def _pins(model: Model) -> list[tuple[str, str]]:
    return [
        ("model_sha256", model.sha256),
        ("calibration_sha256", model.calibration.sha256),
        ("preprocessing", model.preprocessing),
        ("execution_provider", model.execution_provider),
        ("software_build", software_build()),
    ]


def _digest(images: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(images, "<f4").tobytes()).hexdigest()


def _in_order(models: Sequence[Model]) -> list[Model]:
    return sorted(models, key=lambda one: (one.name, one.version))


def _absent() -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_MODEL_NOT_FOUND, "no model of this name and version is served")


def _fixed() -> StepwedgeError:
    return StepwedgeError(ErrorCode.ERROR_CODE_WRONG_STATE, "the settings say which models are served")
