"""The names a plugin may import from scope at run time, by module; every one works as scope's does."""

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pluggy
from pydantic import BaseModel, ConfigDict, Field


class HuggingfaceRepoArtifact(BaseModel):
    """Files of one repository; they land under <models>/<last part of repo_id>."""

    repo_id: str
    files: list[str]


class NodePort(BaseModel):
    """A named end of an edge of the graph."""

    name: str
    port_type: str
    required: bool = True
    description: str = ""
    default_value: Any = None


class NodeDefinition(BaseModel):
    """What the catalogue lists of a pipeline."""

    node_type_id: str
    display_name: str
    category: str = "general"
    description: str = ""
    inputs: list[NodePort] = []
    outputs: list[NodePort] = []
    pipeline_meta: dict[str, Any] | None = None


class Requirements(BaseModel):
    """How many frames of every video port the next call wants."""

    input_size: int


class UsageType(str, Enum):  # noqa: UP042 — scope's members are plain strings to json
    """A second use of a pipeline, in front of or behind another."""

    PREPROCESSOR = "preprocessor"
    POSTPROCESSOR = "postprocessor"


class ModeDefaults(BaseModel):
    """What the page proposes in one input mode; the server applies none of it."""

    model_config = ConfigDict(extra="forbid")

    default: bool = False
    height: int | None = None
    width: int | None = None
    denoising_steps: list[int] | None = None
    noise_scale: float | None = None
    noise_controller: bool | None = None
    input_size: int | None = None
    default_temporal_interpolation_steps: int | None = None


def ui_field_config(
    *,
    order: int | None = None,
    component: str | None = None,
    modes: list[str] | None = None,
    is_load_param: bool = False,
    label: str | None = None,
    category: Literal["configuration", "input"] | None = None,
    modulatable: bool = False,
    modulatable_min: float | None = None,
    modulatable_max: float | None = None,
) -> dict[str, Any]:
    """The json_schema_extra of a field: how the page shows it. What is not given is left out."""
    always = {"category": category or "configuration", "is_load_param": is_load_param}
    given = {
        "order": order,
        "component": component,
        "modes": modes,
        "label": label,
        "modulatable": modulatable or None,
        "modulatable_min": modulatable_min,
        "modulatable_max": modulatable_max,
    }
    return {"ui": always | {key: value for key, value in given.items() if value is not None}}


_METADATA = (
    "supports_prompts default_temporal_interpolation_method default_temporal_interpolation_steps "
    "default_spatial_interpolation_method docs_url estimated_vram_gb supports_lora supports_vace "
    "supports_cache_management supports_kv_cache_bias supports_quantization min_dimension "
    "recommended_quantization_vram_threshold modified produces_video produces_audio"
).split()


class BasePipelineConfig(BaseModel):
    """A pipeline's identity (class variables) and its controls (fields)."""

    model_config = ConfigDict(extra="forbid")

    pipeline_id: ClassVar[str] = "base"
    pipeline_name: ClassVar[str] = "Base Pipeline"
    pipeline_description: ClassVar[str] = "Base pipeline configuration"
    pipeline_version: ClassVar[str] = "1.0.0"
    docs_url: ClassVar[str | None] = None
    estimated_vram_gb: ClassVar[float | None] = None
    requires_models: ClassVar[bool] = False
    artifacts: ClassVar[list] = []
    supports_lora: ClassVar[bool] = False
    supports_vace: ClassVar[bool] = False
    supports_cache_management: ClassVar[bool] = False
    supports_kv_cache_bias: ClassVar[bool] = False
    supports_quantization: ClassVar[bool] = False
    supports_prompts: ClassVar[bool] = True
    produces_video: ClassVar[bool] = True
    produces_audio: ClassVar[bool] = False
    min_dimension: ClassVar[int] = 1
    modified: ClassVar[bool] = False
    recommended_quantization_vram_threshold: ClassVar[float | None] = None
    usage: ClassVar[list[UsageType]] = []
    inputs: ClassVar[list] = ["video"]
    outputs: ClassVar[list] = ["video"]
    modes: ClassVar[dict[str, ModeDefaults]] = {"text": ModeDefaults(default=True)}
    default_temporal_interpolation_method: ClassVar[str | None] = "slerp"
    default_temporal_interpolation_steps: ClassVar[int | None] = 0
    default_spatial_interpolation_method: ClassVar[str | None] = "linear"

    height: int = Field(512, ge=1)
    width: int = Field(512, ge=1)
    manage_cache: bool = True
    base_seed: Annotated[int, Field(ge=0)] = 42
    denoising_steps: list[int] | None = None
    lora_merge_strategy: Literal["permanent_merge", "runtime_peft"] | None = None
    noise_scale: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(None, ge=0.0, le=1.0)
    noise_controller: bool | None = None
    input_size: int | None = Field(1, ge=1)
    ref_images: list[str] | None = None
    vace_context_scale: float = Field(1.0, ge=0.0, le=2.0)

    @classmethod
    def get_pipeline_metadata(cls) -> dict[str, str]:
        return {key: getattr(cls, f"pipeline_{key}") for key in ("id", "name", "description", "version")}

    @classmethod
    def get_supported_modes(cls) -> list[str]:
        return list(cls.modes)

    @classmethod
    def get_default_mode(cls) -> str:
        return next((name for name, mode in cls.modes.items() if mode.default), next(iter(cls.modes)))

    @classmethod
    def get_defaults_for_mode(cls, mode: str) -> dict[str, Any]:
        own = cls.modes[mode].model_dump(exclude={"default"}, exclude_none=True) if mode in cls.modes else {}
        return cls().model_dump() | own

    @classmethod
    def get_schema_with_metadata(cls) -> dict[str, Any]:
        """What /api/v1/pipelines/schemas serves of this class."""
        hints = {name: mode.model_dump(exclude={"default"}, exclude_none=True) for name, mode in cls.modes.items()}
        hints = {name: values for name, values in hints.items() if values}
        return (
            cls.get_pipeline_metadata()
            | {"supported_modes": cls.get_supported_modes(), "default_mode": cls.get_default_mode()}
            | {key: getattr(cls, key) for key in _METADATA}
            | {"requires_models": cls.requires_models or bool(cls.artifacts)}
            | {"usage": [usage.value for usage in cls.usage]}
            | {"inputs": list(cls.inputs), "outputs": list(cls.outputs), "config_schema": cls.model_json_schema()}
            | ({"mode_defaults": hints} if hints else {})
        )

    def is_video_mode(self) -> bool:
        return self.input_size is not None


class Pipeline:
    """The base class of pipelines. It has no abstract methods and needs no call of its __init__."""

    node_type_id: ClassVar[str] = ""

    def __init__(self, node_id: str = "", config: dict[str, Any] | None = None):
        self.node_id, self.config = node_id, config or {}

    @classmethod
    def get_config_class(cls):
        return None

    @classmethod
    def get_definition(cls) -> NodeDefinition:
        config = cls.get_config_class()
        if config is None:
            raise NotImplementedError("without a config class a node must bring its own get_definition")
        try:
            meta = config.get_schema_with_metadata()
        except Exception as error:  # the pipeline stays listed
            meta = config.get_pipeline_metadata() | {"schema_error": str(error)}
        inputs = _ports(config.inputs)
        if config.supports_prompts and all(port.name != "prompts" for port in inputs):
            inputs.append(NodePort(name="prompts", port_type="string"))
        return NodeDefinition(
            node_type_id=config.pipeline_id,
            display_name=config.pipeline_name,
            category="pipeline",
            description=config.pipeline_description,
            inputs=inputs,
            outputs=_ports(config.outputs),
            pipeline_meta=meta,
        )

    @classmethod
    def get_dynamic_output_ports(cls, params: dict[str, Any]) -> set[str]:
        return set()

    @classmethod
    def get_artifacts(cls) -> list:
        config = cls.get_config_class()
        return [] if config is None else list(config.artifacts)

    def shutdown(self) -> None:
        """Never called for a pipeline."""

    def prepare(self, **kwargs) -> Requirements | None:
        return None

    def execute(self, inputs: dict[str, Any], **kwargs) -> dict[str, Any]:
        raise NotImplementedError("only plain nodes have execute")

    def __call__(self, **kwargs) -> dict[str, Any]:
        raise NotImplementedError("a pipeline must bring its own __call__")


def _ports(entries: list) -> list[NodePort]:
    return [
        entry if isinstance(entry, NodePort) else NodePort(name=entry, port_type="video")
        for entry in entries or ["video"]
    ]


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().resolve()


def get_base_dir() -> Path:
    return _folder("DAYDREAM_SCOPE_DIR", "~/.daydream-scope")


def get_models_dir() -> Path:
    return _folder("DAYDREAM_SCOPE_MODELS_DIR", "~/.daydream-scope/models")


def get_model_file_path(relative_path: str) -> Path:
    return get_models_dir() / relative_path


def get_assets_dir() -> Path:
    return get_models_dir().parent / "assets"


hookimpl, hookspec = pluggy.HookimplMarker("scope"), pluggy.HookspecMarker("scope")


class ScopeHookSpec:
    """Both hooks get a callback that takes one class."""

    @hookspec
    def register_pipelines(self, register):
        """Register pipeline classes."""

    @hookspec
    def register_nodes(self, register):
        """Register node classes."""


MODULES: dict[str, dict[str, Any]] = {
    "scope": {},
    "scope.core": {"hookimpl": hookimpl},
    "scope.core.config": {
        function.__name__: function for function in (get_base_dir, get_models_dir, get_model_file_path, get_assets_dir)
    },
    "scope.core.pipelines": {},
    "scope.core.pipelines.artifacts": {"HuggingfaceRepoArtifact": HuggingfaceRepoArtifact},
    "scope.core.pipelines.base_schema": {
        "BasePipelineConfig": BasePipelineConfig,
        "ModeDefaults": ModeDefaults,
        "UsageType": UsageType,
        "ui_field_config": ui_field_config,
    },
    "scope.core.pipelines.interface": {"Pipeline": Pipeline, "Requirements": Requirements},
    "scope.core.plugins": {"hookimpl": hookimpl},
    "scope.core.plugins.hookspecs": {"hookimpl": hookimpl, "hookspec": hookspec, "ScopeHookSpec": ScopeHookSpec},
    "scope.server": {},
}
