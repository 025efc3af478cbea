"""What a sweep file may say: SweepSpec and its sections. Every field describes itself; see `json_schema`."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    Strict,
    ValidationError,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import InitErrorDetails

from raymerge.method_settings import (
    MAX_VALUES,
    Linspace,
    Policy,
    Range,
    Section,
    Setting,
    distinct,
    explicit_settings,
    read_methods,
)
from raymerge.methods import declared_methods
from raymerge.methods._method import FixedAlpha, Method
from raymerge.records import Split, content_id
from raymerge.spec_problems import as_problem

Info = Any
"""pydantic.ValidationInfo, a protocol that run-time type checks cannot test for."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int) else value


def _one_or_more(items: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [items, {"type": "array", "items": items, "minItems": 1, "uniqueItems": True}]})


def _auto_or_count(value: Any) -> Any:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise ValueError("expected 'auto' or a whole number of at least 1")


def _evaluators(value: Any) -> Any:
    if type(value) is int and value == 0:
        raise ValueError("no evaluator can run; write 'auto' or a whole number of at least 1")
    return value


def _schedulable(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError("Ray shares out whole units above 1; write a whole number, or a fraction below 1")
    return value


def _empty_means_default(value: Any) -> Any:
    return {} if value is None else value


Names = Annotated[
    tuple[str, ...],
    Strict(False),
    BeforeValidator(_listed),
    AfterValidator(distinct),
    _one_or_more({"type": "string"}),
]
Counts = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    Strict(False),
    BeforeValidator(_listed),
    AfterValidator(distinct),
    _one_or_more({"type": "integer", "minimum": 1}),
]
AutoOrCount = Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], BeforeValidator(_auto_or_count)]
Units = Annotated[float, Field(ge=0), AfterValidator(_schedulable)]


DEFAULT_PROFILES = {"demo": "full", "tall-masks": "paper-legacy", "fusionbench": "hub"}


class PruneSettings(Section):
    """When a trial that cannot win is stopped before all its tasks are scored."""

    after: float = Field(
        default=0.25, gt=0, le=1, description="Fraction of the tasks that are scored before a trial may stop."
    )
    margin: float = Field(
        default=0.05, ge=0, le=1, description="How far the objective must lie below the best trial's to stop it."
    )


class SearchSettings(Section):
    """How alpha and the structural parameters of a cell are chosen on the validation split."""

    policy: Policy = Field(
        default="tpe",
        description="tpe: Optuna's sampler suggests trials. grid: every combination. paper: the published protocol: "
        "alpha in ascending order, other parameters at their defaults, patience instead of pruning.",
    )
    trials: int = Field(default=16, ge=1, description="Suggestions per cell (tpe).")
    batch: int = Field(
        default=4,
        ge=1,
        description="Suggestions asked for before any outcome of that batch is told (tpe, grid). Fixed, so that "
        "results do not depend on the number of evaluators.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the sampler (tpe).")
    objective: Literal["normalized_accuracy", "accuracy"] = Field(
        default="normalized_accuracy",
        description="Average over tasks that the best trial maximises; normalized: divided by the expert's accuracy.",
    )
    prune: PruneSettings | None = Field(
        default=PruneSettings(), description="When to stop a hopeless trial (tpe and grid); null scores every task."
    )
    patience: int = Field(
        default=3,
        ge=1,
        description="Alphas in a row without a better average accuracy after which a cell stops (paper).",
    )

    @field_validator("objective", mode="after")
    @classmethod
    def _check_objective(cls, value: str, info: Info) -> str:
        if info.data.get("policy") == "paper" and value != "normalized_accuracy":
            raise ValueError("policy paper selects by normalized_accuracy")
        return value


class EvaluationSettings(Section):
    """How a merged model is scored."""

    precision: Literal["fp32", "bf16", "fp16", "auto"] = Field(
        default="fp32",
        description="Arithmetic of the encoder; fp32 is the reference. auto: the fastest that gives the answers of "
        "fp32 on 99.5 % of a sample of validation images, decided once and kept with the results.",
    )
    batch_size: AutoOrCount = Field(
        default="auto",
        description="Images per forward pass; auto: by the size of the encoder on a CPU, measured once on a GPU. "
        "Halved where memory runs out.",
    )
    denominators: Literal["measured", "published"] = Field(
        default="measured",
        description="Accuracies of the experts that normalized accuracies divide by: as this sweep measures them, or "
        "as they were published for the suite.",
    )
    shard_images: int = Field(default=1024, ge=1, description="Most images that one evaluator gets at a time.")
    max_images: int | None = Field(
        default=None, ge=1, description="Score only the first so many images of every split; null: all of them."
    )
    store_predictions: bool = Field(
        default=False,
        description="Keep the predicted class of every test image beside the counts, for `raymerge compare`.",
    )

    def stores_predictions_of(self, split: Split) -> bool:
        return self.store_predictions and split == "test"


class ResourceSettings(Section):
    """What the sweep takes of a machine or cluster. Changes how long it takes, never a number."""

    evaluators: Annotated[AutoOrCount, BeforeValidator(_evaluators)] = Field(
        default="auto", description="Evaluator processes; auto: as many as fit."
    )
    cpus_per_evaluator: Units = Field(default=1.0, description="CPU cores reserved for each evaluator.")
    gpus_per_evaluator: Units = Field(default=0.0, description="GPUs reserved for each; 0.5 lets two share one.")


class TensorboardSettings(Section):
    """Event files that TensorBoard reads."""

    folder: str | None = Field(
        default=None,
        min_length=1,
        description="Where, on the machine that runs the driver; null: tensorboard/ in the folder of results.",
    )


class WandbSettings(Section):
    """Weights & Biases. Who you are stays out of this file: run `wandb login`, or set WANDB_API_KEY."""

    project: str | None = Field(default=None, min_length=1, description="null: WANDB_PROJECT, or the sweep's name.")
    entity: str | None = Field(default=None, min_length=1, description="User or team; null: your own default.")
    group: str | None = Field(default=None, min_length=1, description="null: the sweep's name.")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline: into a folder, for `wandb sync`; it needs no account."
    )
    folder: str | None = Field(
        default=None,
        min_length=1,
        description="Where its files go, on the machine that runs the driver; null: the folder of results.",
    )


class MlflowSettings(Section):
    """MLflow. Credentials stay out of this file: MLflow reads them from its environment variables."""

    experiment_name: str | None = Field(default=None, min_length=1, description="null: the sweep's name.")
    tracking_uri: str | None = Field(
        default=None, min_length=1, description="Server, or sqlite:///file.db; null: MLFLOW_TRACKING_URI."
    )


class TrackerSettings(Section):
    """Where trials are shown beside the results, while the sweep runs. {} takes the defaults, null is none."""

    tensorboard: TensorboardSettings | None = Field(default=None, description="TensorBoard.")
    wandb: WandbSettings | None = Field(default=None, description="Weights & Biases; pip install 'raymerge[wandb]'.")
    mlflow: MlflowSettings | None = Field(default=None, description="MLflow; pip install 'raymerge[mlflow]'.")

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are wanted."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


class SweepSpec(Section):
    """One sweep: every method on every backbone and number of tasks, searched on val and reported on test."""

    schema_version: Literal[1] = Field(default=1, description="Version of this format.")
    name: str = Field(description="Names the folder of results: letters, digits, '.', '_' and '-'.")
    suite: str = Field(
        min_length=1,
        description="Where backbones, tasks and weights come from: demo, tall-masks, fusionbench, the path of a suite "
        "file, or of a suite's folder.",
    )
    profile: str | None = Field(
        default=None,
        validate_default=True,
        description="Variant of the suite. demo: full (default) or reduced; tall-masks: paper-legacy (default) or "
        "corrected.",
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of the checkpoints of tall-masks or fusionbench; null: where `raymerge suite fetch` puts "
        "them.",
    )
    data: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of the raw datasets; null: where `raymerge data fetch` puts them.",
    )
    suite_seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of a suite that is generated.")
    backbones: Names | None = Field(default=None, description="Image encoders; null: all of the suite.")
    num_tasks: Counts | None = Field(
        default=None, description="Sizes of the task sets: the first so many tasks of the suite."
    )
    tasks: Names | None = Field(
        default=None, validate_default=True, description="One task set by name, instead of num_tasks."
    )
    moments: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of input moments, which some methods need, as `raymerge stats --output` writes it; null: "
        "where `raymerge stats` puts those of the suite.",
    )
    search: Annotated[SearchSettings, BeforeValidator(_empty_means_default)] = Field(
        default=SearchSettings(), description="How parameters are chosen."
    )
    methods: dict[str, dict[str, Setting]] = Field(
        description="Merging methods, as a list or with settings. A setting is a number, a list of numbers, "
        "{low, high, step} or, for alpha, {start, stop, num}."
    )
    evaluation: Annotated[EvaluationSettings, BeforeValidator(_empty_means_default)] = Field(
        default=EvaluationSettings(), description="How models are scored."
    )
    resources: Annotated[ResourceSettings, BeforeValidator(_empty_means_default)] = Field(
        default=ResourceSettings(), description="What the sweep takes of the cluster."
    )
    trackers: Annotated[TrackerSettings, BeforeValidator(_empty_means_default)] = Field(
        default=TrackerSettings(), description="Where trials are shown beside the results."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError("expected up to 100 letters, digits, '.', '_' or '-', since it names a folder")
        return value

    @field_validator("profile")
    @classmethod
    def _default_profile(cls, value: str | None, info: Info) -> str | None:
        return DEFAULT_PROFILES.get(info.data.get("suite", "")) if value is None else value

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, value: tuple[str, ...] | None, info: Info) -> tuple[str, ...] | None:
        if "num_tasks" in info.data:  # absent when it was wrong itself
            num_tasks = info.data["num_tasks"]
            if value is None and num_tasks is None:
                raise as_problem("no task set: add 'num_tasks: [8]' or 'tasks: [...]'.")
            if value is not None and num_tasks is not None:
                raise as_problem("'tasks' and 'num_tasks' exclude each other; remove one of them.")
        return value

    @field_validator("methods", mode="plain")
    @classmethod
    def _check_methods(cls, value: Any, info: Info) -> dict[str, dict[str, Setting]]:
        search = info.data.get("search")
        methods, problems = read_methods(value, search.policy if search else None)
        if problems:
            raise ValidationError.from_exception_data(
                "methods", [InitErrorDetails(type=as_problem(text), loc=loc, input=None) for loc, text in problems]
            )
        return methods


def resolve(spec: SweepSpec) -> dict[str, Any]:
    """The sweep with every default written out, as JSON-like values; it is itself a valid sweep file."""
    declared = declared_methods()
    value = spec.model_dump(mode="json", exclude={"methods"})
    value["methods"] = {
        name: {
            key: setting.model_dump(mode="json")
            if isinstance(setting, BaseModel)
            else list(setting)
            if isinstance(setting, tuple)
            else setting
            for key, setting in explicit_settings(declared[name], given, spec.search.policy).items()
        }
        for name, given in spec.methods.items()
    }
    return value


def spec_hash(spec: SweepSpec) -> str:
    """Content id of what decides the numbers.

    The name, the resources, the trackers, the places of weights, data and input moments, how images are cut into
    batches, and whether predictions are stored are left out: a sweep may be resumed elsewhere, with more evaluators or
    smaller batches. The order of backbones, sizes and methods does not matter.
    """
    value = resolve(spec)
    for key in ("schema_version", "name", "resources", "trackers", "moments", "weights", "data"):
        del value[key]
    for key in ("batch_size", "shard_images", "store_predictions"):
        del value["evaluation"][key]
    for key in ("backbones", "num_tasks"):
        value[key] = sorted(value[key]) if value[key] else value[key]
    return content_id(value)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a sweep file, with the methods and parameters that are installed."""
    schema = SweepSpec.model_json_schema()
    defs = schema["$defs"]
    for form in (Range, Linspace):
        defs.setdefault(form.__name__, form.model_json_schema())
    number: dict[str, Any] = {"type": "number"}
    parameter_forms = [
        number,
        {"type": "array", "items": number, "minItems": 1, "uniqueItems": True, "maxItems": MAX_VALUES},
        {"$ref": "#/$defs/Range"},
    ]
    defs["Alpha"] = {"anyOf": [*parameter_forms, {"$ref": "#/$defs/Linspace"}]}

    def settings_of(method: Method) -> dict[str, Any]:
        alpha = {} if isinstance(method.alpha, FixedAlpha) else {"alpha": {"$ref": "#/$defs/Alpha"}}
        bounded = {
            p.name: {
                "description": p.description,
                **(
                    {"enum": list(p.choices)}
                    if p.choices
                    else {"anyOf": [{"type": "number", "minimum": p.low, "maximum": p.high}, *parameter_forms[1:]]}
                ),
            }
            for p in method.parameters
        }
        return {
            "description": f"{method.title} ({method.source})",
            "type": ["object", "null"],
            "properties": {**alpha, **bounded},
            "additionalProperties": False,
        }

    declared = declared_methods()
    names = {"enum": list(declared)}
    schema["properties"]["methods"] = {
        "description": schema["properties"]["methods"]["description"],
        "anyOf": [
            names,
            {"type": "array", "items": names, "minItems": 1, "uniqueItems": True},
            {
                "type": "object",
                "properties": {name: settings_of(method) for name, method in declared.items()},
                "additionalProperties": False,
                "minProperties": 1,
            },
        ],
    }
    for section in ("search", "evaluation", "resources", "trackers"):
        described = schema["properties"][section]
        schema["properties"][section] = {
            "description": described.pop("description", ""),
            "default": described.pop("default", {}),
            "anyOf": [described, {"type": "null"}],
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "raymerge sweep"}
