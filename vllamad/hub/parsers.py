"""Which parsers of the engine fit a model that the library table does not know (floor 2, pure): by the family that
config.json names and by the marks in its chat template. The names are registered in vLLM 0.32."""

import re


def guess_parsers(family: str, template: str) -> tuple[str, str]:
    """Return (tool parser, reasoning parser), "" for none; never a guess without a sign in the template."""
    tool = _tool_parser(family, template)
    return tool, _reasoning_parser(family, template)


def _tool_parser(family: str, template: str) -> str:
    if re.search(r"\btools\b", template) is None:
        return ""
    match family:
        case "gpt_oss":
            return "openai"
        case "llama4":
            return "llama4_pythonic"
        case "glm4_moe":
            return "glm45"
        case "glm4_moe_lite":
            return "glm47"
        case "deepseek_v3":
            return "deepseek_v3"
        case "granite":
            return "granite"
        case "granitemoehybrid":
            return "granite4"
        case "lfm2" | "lfm2_moe":
            return "lfm2"
        case "mistral" | "mistral3" | "mixtral" | "ministral3" if "[TOOL_CALLS]" in template:
            return "mistral"
        case "phi3" | "phi4mm" if "<|tool|>" in template or "<|tool_call|>" in template:
            return "phi4_mini_json"
        case _ if family.startswith("gemma4"):
            return "gemma4"
        case _ if "<start_function_call>" in template:
            return "functiongemma"
        case _ if family.startswith("gemma"):
            return ""
        case _ if "<function=" in template:
            return "qwen3_coder"
        case _ if "<tool_call>" in template:
            return "hermes"
        case "llama" if "<|python_tag|>" in template or "ipython" in template:
            return "llama3_json"
        case _:
            return ""


def _reasoning_parser(family: str, template: str) -> str:
    thinks = "enable_thinking" in template or "<think>" in template
    match family:
        case "gpt_oss" if template:
            return "openai_gptoss"
        case "glm4_moe" if thinks:
            return "glm45"
        case "glm4_moe_lite" if thinks:
            return "glm47"
        case "granite" if "thinking" in template:
            return "granite"
        case "mistral" | "mistral3" | "ministral3" if "[THINK]" in template:
            return "mistral"
        case _ if family.startswith("gemma4") and template:
            return "gemma4"
        case _ if family.startswith("nemotron") and thinks:
            return "nemotron_v3"
        case _ if family.startswith("qwen3") and thinks:
            return "qwen3"
        case _ if "enable_thinking" in template:
            return "qwen3"
        case _ if "<think>" in template:
            # Models that always think (R1 and what was distilled from it, QwQ) open the block in the prompt.
            return "deepseek_r1"
        case _:
            return ""
