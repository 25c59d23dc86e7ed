"""The search space: dotted paths of the configuration with the values that a sweep tries, read from
YAML.

A file maps paths to values::

    model.fusion.kind: weighted       # one value, for every trial except the first
    model.width: [64, 128]            # a choice, short for {choice: [64, 128]}
    train.lr: {loguniform: [3.0e-3, 3.0e-2]}
    model.granularities.social.weight: {uniform: [0, 1], step: 0.05}
    model.granularities.collaborative.layers: {int: [2, 6]}
                                      # with both ends; logint prefers small values

Why so strict: a sweep takes hours, and only the trial that draws it would find a mistyped path or
an invalid end of a range. So every value and both ends of every range are validated as a
configuration before anything starts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, get_args

from recsys.config import Config, ModelConfig, TuneConfig, build_config, parse_yaml, set_path
from recsys.config.renamed import current_path
from recsys.config.yaml_reader import Loader
from recsys.errors import ConfigError, choices, valid_instead
from recsys.training.members import closed_form_names

Kind = Literal["choice", "uniform", "loguniform", "int", "logint"]
SHIPPED: Final = Path(__file__).parent / "spaces"
_KINDS: Final = get_args(Kind)
# the sections that a training reads, besides the dataset and the seed
_SECTIONS: Final = ("model", "train")
_REFUSED: Final = {
    "model.fusion.stack": "trials are compared before stacking",
    "train.metric": "trials are compared by it",
    "train.refit": "trials are chosen before the refit",
    "train.num_workers": "it changes the resources of a trial, not the model",
    "train.use_gpu": "it changes the resources of a trial, not the model",
    "train.threads": "it changes the resources of a trial, not the model",
    "train.max_failures": "it does not change the model",
    "train.checkpoint_steps": "it does not change the model",
    "train.window_events": "it only changes the order of the events",
}
# position in a range that gives no round number, to test for integers
_FRACTION: Final = 0.3819660113


@dataclass(frozen=True)
class Dimension:
    """One path and its values: ``options`` of a choice, or a range from ``low`` to ``high``, both
    included.
    """

    path: str
    kind: Kind
    options: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None

    def probes(self) -> list[Any]:
        """The values to validate: every option, or both ends of a range and one value between."""
        if self.kind == "choice":
            return list(self.options)
        if self.kind in ("int", "logint"):
            return [int(self.low), int(self.high)]
        between = self.low + (self.step or _FRACTION * (self.high - self.low))
        return [self.low, self.high, between]

    def __contains__(self, value: Any) -> bool:
        if self.kind == "choice":
            return any(_same(value, option) for option in self.options)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not self.low <= value <= self.high
        ):
            return False
        if self.kind in ("int", "logint") and int(value) != value:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-6

    def __str__(self) -> str:
        if self.kind == "choice":
            return ", ".join(json.dumps(option) for option in self.options)
        ends = f"{self.low:g} to {self.high:g}"
        step = f" by {self.step:g}" if self.step else ""
        return f"{ends}{step}{' (log)' if self.kind.startswith('log') else ''}"


@dataclass(frozen=True)
class Space:
    """The paths that a sweep varies and those that it fixes, in the order of the files."""

    dimensions: tuple[Dimension, ...]
    fixed: dict[str, Any] = field(default_factory=dict)

    def apply(self, config: Config, params: Mapping[str, Any]) -> Config:
        """The configuration with the fixed values and those of a trial.

        Raises
        ------
        ConfigError
            The values are valid alone but not together.
        """
        return with_values(config, {**self.fixed, **params})

    def values_of(self, config: Config) -> dict[str, Any]:
        """The values of the configuration at the paths of the dimensions."""
        tree = config.model_dump(mode="json")
        return {dimension.path: _at(tree, dimension.path) for dimension in self.dimensions}

    def holds(self, config: Config) -> bool:
        """Whether the configuration is in the search space."""
        tree, values = config.model_dump(mode="json"), self.values_of(config)
        fixed = all(_same(_at(tree, path), value) for path, value in self.fixed.items())
        return fixed and all(values[dimension.path] in dimension for dimension in self.dimensions)

    def highest(self, path: str, otherwise: int) -> int:
        """The largest integer that a path may take; ``otherwise`` if the space does not have the
        path.
        """
        found = [dimension for dimension in self.dimensions if dimension.path == path]
        return int(max(found[0].probes())) if found else int(self.fixed.get(path, otherwise))

    def describe(self) -> str:
        """The space as text, one line per path."""
        rows = [(d.path, str(d)) for d in self.dimensions] + [
            (p, json.dumps(v)) for p, v in self.fixed.items()
        ]
        width = max(len(path) for path, _ in rows)
        return "\n".join(f"{path:<{width}}  {values}" for path, values in rows)


def load_space(files: Sequence[str], config: Config) -> Space:
    """Read the files and check every value against the configuration.

    Raises
    ------
    ConfigError
        A file is missing or unreadable, a path is unknown or cannot vary, a range is malformed, or
        a value is invalid. The message names file, path and value.
    """
    if not files:
        raise ConfigError(
            "tune.space: no search space is given; expected a YAML file of dotted path → values,"
            f" or one of the shipped: {_shipped()}"
        )
    found: dict[str, str] = {}
    dimensions, fixed = [], {}
    for name in files:
        file = _find(name)
        for written, value in _read(file).items():
            path = current_path(written)
            if path in found:
                raise ConfigError(f"{file}: {path} is also in {found[path]}; remove one of them")
            found[path] = str(file)
            where = f"{file}: {path}"
            _check_path(config, path, where)
            dimension = _dimension(path, value, where)
            for probe in dimension.probes():
                _check_value(config, path, probe, where)
            if len(dimension.options) == 1:
                fixed[path] = dimension.options[0]
            else:
                dimensions.append(dimension)
    if not dimensions:
        raise ConfigError(
            f"tune.space: {', '.join(files)} vary nothing; give several values for at least one"
            " path"
        )
    check_trained(config.model)
    space = Space(tuple(dimensions), fixed)
    _check_stacked(space, config.model)
    _check_rungs(space, config.model, config.tune)
    return space


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values at some dotted paths."""
    tree = config.model_dump(mode="json")
    for path, value in values.items():
        set_path(tree, path, value)
    return build_config(tree, expand=False)


def preview(config: Config) -> str:
    """Description of the trials for a dry run.

    Raises
    ------
    ConfigError
        The space is invalid.
    """
    space = load_space(config.tune.space, config)
    return f"{config.tune.trials} trials over:\n{space.describe()}"


# ------------------------------------------------------------------------------------------ reading


def _find(name: str) -> Path:
    """The file, or the shipped space of that name."""
    shipped = SHIPPED / f"{name}.yaml"
    if not Path(name).is_file() and "/" not in name and shipped.is_file():
        return shipped
    if not Path(name).is_file():
        raise ConfigError(
            f"tune.space: {name} does not exist; give a YAML file, or a shipped space: {_shipped()}"
        )
    return Path(name)


def _shipped() -> str:
    return choices(path.stem for path in SHIPPED.glob("*.yaml"))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}; check its permissions"
        ) from None
    tree = parse_yaml(content, f"{file} is not valid YAML", Loader)
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(f"{file}: expected dotted paths with their values, got {_kind_of(tree)}")
    strange = [key for key in tree if not isinstance(key, str)]
    if strange:
        raise ConfigError(
            f"{file}: {strange[0]!r} is not a dotted path of the configuration, such as train.lr"
        )
    return tree


def _dimension(path: str, value: Any, where: str) -> Dimension:
    """The values of a path: one value, a list, or a mapping of kind to values with an optional
    ``step``.

    Raises
    ------
    ConfigError
        A mapping has no kind, several kinds or an unknown key, or a choice has a step.
    """
    if not isinstance(value, dict):
        return _choice(path, value if isinstance(value, list) else [value], where)
    kinds = [key for key in value if key in _KINDS]
    strange = [str(key) for key in value if key not in (*_KINDS, "step")]
    if len(kinds) != 1 or strange:
        raise ConfigError(
            f"{where}: got {', '.join(map(str, value))}; expected one of {', '.join(_KINDS)}, with"
            " an optional step for uniform and int"
        )
    kind: Kind = kinds[0]
    if kind == "choice":
        if "step" in value:
            raise ConfigError(f"{where}: a choice has no step; remove it")
        return _choice(path, value[kind], where)
    low, high = _ends(value[kind], kind, where)
    return Dimension(path, kind, (), low, *_stepped(kind, low, high, value.get("step"), where))


def _choice(path: str, options: Any, where: str) -> Dimension:
    if not isinstance(options, list) or not options:
        raise ConfigError(f"{where}: expected a list of values to choose from, got {options!r}")
    plain = tuple(_plain(option) for option in options)
    for index, option in enumerate(plain):
        if isinstance(option, dict):
            raise ConfigError(f"{where}: {option} is a section; vary its keys, one path each")
        if any(_same(option, other) for other in plain[:index]):
            raise ConfigError(f"{where}: {option!r} is given twice; remove one")
    return Dimension(path, "choice", plain)


def _ends(value: Any, kind: Kind, where: str) -> tuple[float, float]:
    """Low and high end of a range."""
    expected = f"{where}: expected {kind}: [low, high] with low < high, got {value!r}"
    if not isinstance(value, list) or len(value) != 2:
        raise ConfigError(expected)
    low, high = (_plain(end) for end in value)
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, (int, float)) or not math.isfinite(end):
            raise ConfigError(expected)
    if not low < high:
        raise ConfigError(expected)
    if kind in ("int", "logint") and (int(low) != low or int(high) != high):
        raise ConfigError(
            f"{where}: {kind} needs whole numbers, got {value!r}; use uniform for other numbers"
        )
    if kind in ("loguniform", "logint") and low <= 0:
        raise ConfigError(
            f"{where}: {kind} needs a low end above 0, got {low:g}; use uniform or int instead"
        )
    return float(low), float(high)


def _stepped(
    kind: Kind, low: float, high: float, step: Any, where: str
) -> tuple[float, float | None]:
    """The last value of a range that its steps reach, and the step."""
    if step is None:
        return high, None
    step = _plain(step)
    if kind not in ("uniform", "int"):
        raise ConfigError(f"{where}: {kind} has no step; remove it, or list the values as a choice")
    if isinstance(step, bool) or not isinstance(step, (int, float)) or not 0 < step <= high - low:
        raise ConfigError(
            f"{where}: expected a step above 0 and up to {high - low:g}, got {step!r}"
        )
    if kind == "int" and int(step) != step:
        raise ConfigError(f"{where}: int needs a whole step, got {step!r}")
    return round(low + math.floor((high - low) / step + 1e-9) * step, 12), float(step)


# ----------------------------------------------------------------------------------------- checking


def _check_path(config: Config, path: str, where: str) -> None:
    """Refuse unknown keys, and keys that do not change the training."""
    node: Any = config.model_dump(mode="json")
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            keys = node if isinstance(node, dict) else {}
            none = "none, because it is a value"
            raise ConfigError(
                f"{where}: unknown path; there is no key {key!r};"
                f" {valid_instead(key, keys, 'valid keys', none=none)}"
            )
        node = node[key]
    section = path.split(".")[0]
    if section == "data":
        raise ConfigError(
            f"{where}: this key changes the prepared dataset, which all trials share; prepare"
            " another one with its own data.dir and run a sweep on each"
        )
    if path == "seed":
        raise ConfigError(
            f"{where}: a seed cannot be chosen; set tune.seeds, the number of seeds for the best"
            " trials"
        )
    if section not in _SECTIONS:
        raise ConfigError(
            f"{where}: this key does not change the training; a sweep varies model.… and train.…"
        )
    if path in _REFUSED:
        raise ConfigError(
            f"{where}: a sweep cannot vary this key, because {_REFUSED[path]}; set it in"
            " the configuration"
        )
    if isinstance(node, dict) and node and _is_section(config, path):
        raise ConfigError(f"{where}: this is a section; vary its keys: {choices(node)}")


def _check_value(config: Config, path: str, value: Any, where: str) -> None:
    try:
        with_values(config, {path: value})
    except ConfigError as error:
        reason = str(error).split("\n", 1)[-1].strip()
        whole = (
            "; use int if only whole numbers are valid"
            if isinstance(value, float) and value % 1
            else ""
        )
        raise ConfigError(f"{where}: {value!r} is not valid: {reason}{whole}") from None


def check_trained(model: ModelConfig) -> None:
    """Refuse a stacked model of closed-form members only: a trial has nothing to train.

    Raises
    ------
    ConfigError
        It is one.
    """
    if model.fusion.stack and not model.granularities.are_trained:
        raise ConfigError(
            "recsys tune: no granularity is trained (model.granularities), so a sweep has nothing"
            " to try; `recsys run` chooses the constants and weights of closed-form members on"
            " validation (model.fusion.stack)"
        )


def _check_stacked(space: Space, model: ModelConfig) -> None:
    """Refuse to vary what trials of a stacked model do not read.

    Raises
    ------
    ConfigError
        A path belongs to a closed-form member, which stacking adds after the training.
    """
    if not model.fusion.stack:
        return
    fitted = {
        name
        for name in model.granularities.names()
        if getattr(model.granularities, name).is_closed_form
    }
    for dimension in space.dimensions:
        section, _, key = dimension.path.removeprefix("model.granularities.").partition(".")
        if key and section in fitted:
            raise ConfigError(
                f"tune.space: {dimension.path} changes no trial: trials train only the trained"
                f" granularities, and stacking adds {section} after the training"
                " (model.fusion.stack); remove the path"
            )


def _check_rungs(space: Space, model: ModelConfig, tune: TuneConfig) -> None:
    """Refuse early stopping if the values of trials cannot be compared.

    During the training, learned and gated fusion leave out the closed-form granularities, while
    weighted fusion includes them.

    Raises
    ------
    ConfigError
        They cannot.
    """
    kinds = [
        option for d in space.dimensions if d.path == "model.fusion.kind" for option in d.options
    ]
    fitted = [] if model.fusion.stack else closed_form_names(model)  # stacking adds them later
    if tune.scheduler == "asha" and fitted and "weighted" in kinds:
        raise ConfigError(
            f"tune.space: model.fusion.kind has the values {', '.join(kinds)}, whose trials cannot"
            f" be compared after the same epochs: only trials with weighted include"
            f" {', '.join(fitted)}; run a separate sweep for weighted, or set tune.scheduler none"
        )


def _is_section(config: Config, path: str) -> bool:
    node: Any = config
    for key in path.split("."):
        node = getattr(node, key)
    return hasattr(node, "model_fields_set")


def _at(tree: Mapping[str, Any], path: str) -> Any:
    node: Any = tree
    for key in path.split("."):
        node = node[key]
    return node


def _plain(value: Any) -> Any:
    """A value with numbers that YAML 1.1 reads as text, such as ``3e-4``.

    >>> _plain("3e-4"), _plain("gru"), _plain("12")
    (0.0003, 'gru', '12')
    """
    if isinstance(value, str) and "e" in value.lower() and value[:1] in "+-.0123456789":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal as JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, bool) != isinstance(other, bool):
        return False
    return bool(one == other)


def _kind_of(tree: Any) -> str:
    return "nothing" if tree in (None, {}) else type(tree).__name__
