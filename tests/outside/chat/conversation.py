"""Prompts of conversations."""

import dataclasses


@dataclasses.dataclass
class Conversation:
    name: str
    system_message: str = ""

    def prompt(self, question: str) -> str:
        return f"{self.system_message}\n{question}\n"


_templates = {"plain": Conversation(name="plain", system_message="Answer in a word.")}


def get_conv_template(name: str) -> Conversation:
    return dataclasses.replace(_templates[name])
