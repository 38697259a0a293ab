"""Recipes at work (floor 1): what a Modelfile means for the model that is made with it, and for requests to that."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vllama.reasons import Reason
from vllamad.dialects.modelfile import Modelfile, render
from vllamad.domain.errors import VllamaError
from vllamad.domain.model import Capability, Model, Recipe

if TYPE_CHECKING:
    from vllamad.dialects.go_templates.template import Template

_PLAIN = frozenset({Capability.COMPLETION, Capability.EMBEDDING})


def changes_of(modelfile: Modelfile) -> Recipe:
    """What a Modelfile changes, its FROM and ADAPTER aside. Raises UNSUPPORTED for commands that cannot be honoured,
    INVALID_REQUEST for a template that cannot be run."""
    if modelfile.draft:
        raise _cannot("DRAFT", "give the engine its own flags instead: args in a [[model]] row of the configuration")
    return checked(
        Recipe(
            parameters=modelfile.parameters,
            system=modelfile.system,
            template=modelfile.template,
            messages=modelfile.messages,
            licenses=modelfile.licenses,
        )
    )


def checked(recipe: Recipe) -> Recipe:
    """The same recipe, if its template can be run and a Modelfile can express it. Raises INVALID_REQUEST."""
    if recipe.template:
        try:
            parsed(recipe.template)
        except VllamaError as error:
            raise VllamaError(error.reason, f"template error: {error.message}", error.hint) from error
    write_modelfile("model", recipe)
    return recipe


def write_modelfile(source: str, recipe: Recipe, adapter: str = "") -> str:
    """The Modelfile that makes a model of ``source``, this recipe and the adapter in this folder. Raises
    INVALID_REQUEST for the few texts that no Modelfile can hold; ``checked`` keeps them out."""
    return render(
        Modelfile(
            (source,),
            adapters=(adapter,) if adapter else (),
            template=recipe.template,
            system=recipe.system,
            licenses=recipe.licenses,
            messages=recipe.messages,
            parameters=recipe.parameters,
        )
    )


def adapter_of(modelfile: Modelfile) -> str:
    """The one ADAPTER; "" if there is none. Raises UNSUPPORTED if there are several."""
    if len(modelfile.adapters) > 1:
        raise _cannot("more than one ADAPTER", "make a model for each")
    return modelfile.adapters[0] if modelfile.adapters else ""


@lru_cache(maxsize=64)
def parsed(template: str) -> "Template":
    """A Go template, ready to be run; those in use are kept. Raises INVALID_REQUEST in Go's words."""
    # Few models have one, and a twentieth of the daemon's start would go into the import.
    from vllamad.dialects.go_templates.template import parse

    return parse(template)


def source_of(modelfile: Modelfile) -> str:
    """The one FROM. Raises UNSUPPORTED if there are several."""
    source, *more = modelfile.sources
    if more:
        raise _cannot("more than one FROM", "name the folder that holds the files")
    return source


def capabilities_with(recipe: Recipe, own: tuple[Capability, ...]) -> tuple[Capability, ...]:
    """What a model can do under a recipe.

    A prompt that a Go template made goes to the engine as finished text: no parser takes tool calls or thinking out of
    the answer, and images cannot travel with it.
    """
    if not recipe.template:
        return own
    kept = tuple(capability for capability in own if capability in _PLAIN)
    return (*kept, Capability.INSERT) if "Suffix" in parsed(recipe.template).fields else kept


def options_with(model: Model, asked: dict[str, Any]) -> dict[str, Any]:
    """A request's options over the model's own parameters."""
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in model.recipe.parameters.items()}
    return {**own, **{name: value for name, value in asked.items() if value is not None}} if own else asked


def conversation(model: Model, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A request's messages behind the model's own. Its system message comes first, unless the request brings one."""
    recipe = model.recipe
    whole = [*({"role": role, "content": text} for role, text in recipe.messages), *messages]
    brings_system = bool(messages) and messages[0]["role"] == "system"
    if recipe.system and not brings_system:
        whole.insert(0, {"role": "system", "content": recipe.system})
    return whole


def _cannot(what: str, hint: str) -> VllamaError:
    return VllamaError(Reason.UNSUPPORTED, f"{what} is not supported", hint)
