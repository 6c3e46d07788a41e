"""comfy.patcher_extension: functions that packs put around parts of a run, and the tables they keep them in.

Here a MODEL with such functions runs in packs' own samplers at most: our nodes refuse it by name
(model_patcher.ModelPatcher.handle).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "CallbacksMP",
    "PatcherInjection",
    "WrapperExecutor",
    "WrappersMP",
    "add_callback",
    "add_callback_with_key",
    "add_wrapper",
    "add_wrapper_with_key",
    "copy_nested_dicts",
    "get_all_callbacks",
    "get_all_wrappers",
    "get_callbacks_with_key",
    "get_wrappers_with_key",
    "merge_nested_dicts",
]

Table = dict[str, Any]
Function = Callable[..., Any]


class CallbacksMP:
    """The names of the moments at which callbacks are called."""

    ON_CLONE = "on_clone"
    ON_LOAD = "on_load_after"
    ON_DETACH = "on_detach_after"
    ON_CLEANUP = "on_cleanup"
    ON_PRE_RUN = "on_pre_run"
    ON_PREPARE_STATE = "on_prepare_state"
    ON_APPLY_HOOKS = "on_apply_hooks"
    ON_REGISTER_ALL_HOOK_PATCHES = "on_register_all_hook_patches"
    ON_INJECT_MODEL = "on_inject_model"
    ON_EJECT_MODEL = "on_eject_model"

    @classmethod
    def init_callbacks(cls) -> Table:
        return {}


class WrappersMP:
    """The names of the functions that wrappers can be put around."""

    OUTER_SAMPLE = "outer_sample"
    PREPARE_SAMPLING = "prepare_sampling"
    SAMPLER_SAMPLE = "sampler_sample"
    PREDICT_NOISE = "predict_noise"
    CALC_COND_BATCH = "calc_cond_batch"
    APPLY_MODEL = "apply_model"
    DIFFUSION_MODEL = "diffusion_model"

    @classmethod
    def init_wrappers(cls) -> Table:
        return {}


class PatcherInjection:
    """Two functions that change a model when it is loaded and undo it."""

    def __init__(self, inject: Function, eject: Function) -> None:
        self.inject, self.eject = inject, eject


class WrapperExecutor:
    """A function inside wrappers: each wrapper gets an executor for what is inside of it, and calls it."""

    def __init__(
        self, original: Function, class_obj: Any = None, wrappers: Sequence[Function] = (), idx: int = 0
    ) -> None:
        self.original, self.class_obj, self.wrappers, self.idx = original, class_obj, list(wrappers), idx

    @classmethod
    def new_executor(cls, original: Function, wrappers: Sequence[Function], idx: int = 0) -> WrapperExecutor:
        return cls(original, None, wrappers, idx)

    @classmethod
    def new_class_executor(
        cls, original: Function, class_obj: Any, wrappers: Sequence[Function], idx: int = 0
    ) -> WrapperExecutor:
        """For a method: wrappers find the object as `executor.class_obj`."""
        return cls(original, class_obj, wrappers, idx)

    def execute(self, *args: Any, **kwargs: Any) -> Any:
        """Call the outermost wrapper, or the function."""
        if self.idx >= len(self.wrappers):
            return self.original(*args, **kwargs)
        return self.wrappers[self.idx](self._next(), *args, **kwargs)

    __call__ = execute

    def _next(self) -> WrapperExecutor:
        return WrapperExecutor(self.original, self.class_obj, self.wrappers, self.idx + 1)


def _add(kind: str, key: str | None, function: Function, options: Table, place: str, is_model_options: bool) -> None:
    if is_model_options:
        options = options.setdefault("transformer_options", {})
    options.setdefault(place, {}).setdefault(kind, {}).setdefault(key, []).append(function)


def _all(kind: str, options: Table, place: str, is_model_options: bool) -> dict[Any, list[Function]]:
    if is_model_options:
        options = options.get("transformer_options", {})
    found: dict[Any, list[Function]] = options.get(place, {}).get(kind, {})
    return found


def add_wrapper(wrapper_type: str, wrapper: Function, options: Table, is_model_options: bool = False) -> None:
    _add(wrapper_type, None, wrapper, options, "wrappers", is_model_options)


def add_wrapper_with_key(
    wrapper_type: str, key: str, wrapper: Function, options: Table, is_model_options: bool = False
) -> None:
    _add(wrapper_type, key, wrapper, options, "wrappers", is_model_options)


def get_wrappers_with_key(
    wrapper_type: str, key: str, options: Table, is_model_options: bool = False
) -> list[Function]:
    return _all(wrapper_type, options, "wrappers", is_model_options).get(key, [])


def get_all_wrappers(wrapper_type: str, options: Table, is_model_options: bool = False) -> list[Function]:
    found = _all(wrapper_type, options, "wrappers", is_model_options)
    return [function for functions in found.values() for function in functions]


def add_callback(call_type: str, callback: Function, options: Table, is_model_options: bool = False) -> None:
    _add(call_type, None, callback, options, "callbacks", is_model_options)


def add_callback_with_key(
    call_type: str, key: str, callback: Function, options: Table, is_model_options: bool = False
) -> None:
    _add(call_type, key, callback, options, "callbacks", is_model_options)


def get_callbacks_with_key(call_type: str, key: str, options: Table, is_model_options: bool = False) -> list[Function]:
    return _all(call_type, options, "callbacks", is_model_options).get(key, [])


def get_all_callbacks(call_type: str, options: Table, is_model_options: bool = False) -> list[Function]:
    found = _all(call_type, options, "callbacks", is_model_options)
    return [function for functions in found.values() for function in functions]


def copy_nested_dicts(input_dict: Table) -> Table:
    """A copy with dicts and lists of its own."""

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            return copy_nested_dicts(value)
        return list(value) if isinstance(value, list) else value

    return {key: copied(value) for key, value in input_dict.items()}


def merge_nested_dicts(dict1: Table, dict2: Table, copy_dict1: bool = True) -> Table:
    """`dict1` with the entries of `dict2`: dicts are merged, lists joined, other values replaced."""
    merged = copy_nested_dicts(dict1) if copy_dict1 else dict1
    for key, value in dict2.items():
        before = merged.get(key)
        if isinstance(value, dict):
            merged[key] = merge_nested_dicts(before if isinstance(before, dict) else {}, value)
        elif isinstance(value, list):
            merged[key] = [*(before if isinstance(before, list) else []), *value]
        else:
            merged[key] = value
    return merged
