"""Asks LLaMA-Factory itself what it makes of training rows: its converter, then each of its forms of calls.

Run by test_conversation_properties.py. Reads {"entry": {...}, "rows": [...]} on stdin; prints, as its last line, a list
with an answer for each row: its turns as [role, content], its system text and tools, and for each of its turns of calls
what each template writes, by the name of the template; the error where it would stop.
"""

import json
import logging
import sys
from types import SimpleNamespace

from llamafactory.data.converter import get_dataset_converter
from llamafactory.data.parser import get_dataset_list
from llamafactory.data.template import TEMPLATES


def main():
    logging.disable(logging.CRITICAL)
    request = json.load(sys.stdin)
    attr = get_dataset_list(["x"], {"x": request["entry"]})[0]
    convert = get_dataset_converter("sharegpt", attr, SimpleNamespace(media_dir=""))
    print(json.dumps([answer(convert(row)) for row in request["rows"]]))


def answer(aligned):
    turns = [[turn["role"], turn["content"]] for turn in [*aligned["_prompt"], *aligned["_response"]]]
    written = [
        {name: write(template, content) for name, template in ONE_OF_EACH.items()}
        for role, content in turns
        if role == "function"
    ]
    return {"turns": turns, "system": aligned["_system"], "tools": aligned["_tools"], "written": written}


def write(template, content):
    words = {"thought_words": template.thought_words, "tool_call_words": template.tool_call_words}
    try:
        slots = template.format_function.apply(content=content, **words)
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)}
    return {"text": "".join(slot for slot in slots if isinstance(slot, str))}


ONE_OF_EACH = {
    (template.format_function.tool_format, *template.thought_words, *template.tool_call_words): name
    for name, template in TEMPLATES.items()
}
ONE_OF_EACH = {name: TEMPLATES[name] for name in ONE_OF_EACH.values()}

if __name__ == "__main__":
    main()
