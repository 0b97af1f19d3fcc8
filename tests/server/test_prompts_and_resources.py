import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from tool_calls import with_client

from sota_ml_researcher.doctrine.topics import topics
from sota_ml_researcher.server.prompts import TOOL_OF_COMMAND, read_command
from sota_ml_researcher.templates.catalog import template_kinds
from sota_ml_researcher.tools import TOOLS


def test_there_is_a_prompt_for_each_command_whose_tool_is_there() -> None:
    listed = with_client(lambda client: client.list_prompts()).prompts
    tools = {spec.function.__name__ for spec in TOOLS}
    assert [prompt.name for prompt in listed] == [name for name, tool in TOOL_OF_COMMAND.items() if tool in tools]
    for prompt in listed:
        assert prompt.description == read_command(prompt.name).description
        assert [(argument.name, argument.required) for argument in prompt.arguments] == [("arguments", False)]


def test_a_prompt_is_the_command_with_the_users_words() -> None:
    async def work(client: Client) -> list[str]:
        given = {"arguments": "config.yaml --validate-only"}
        found = [await client.get_prompt("run_sft", arguments) for arguments in (given, None)]
        return [prompt.messages[0].content.text for prompt in found]  # type: ignore[union-attr]

    with_words, without = with_client(work)
    assert "The user's arguments: config.yaml --validate-only\n" in with_words
    assert "The user's arguments: none\n" in without
    assert "$ARGUMENTS" not in with_words + without


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("run_stf", {}, "there is no prompt 'run_stf'. Did you mean 'run_sft'"),
        ("run_sft", {"config": "a.yaml"}, "there is no argument 'config'. It takes: arguments"),
    ],
)
def test_a_wrong_prompt_is_a_sentence(name: str, arguments: dict[str, str], message: str) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(MCPError, match=message):
            await client.get_prompt(name, arguments)

    with_client(work)


def test_every_page_and_template_is_listed_with_its_size_and_can_be_read() -> None:
    async def work(client: Client) -> None:
        listed = [each for each in (await client.list_resources()).resources if not each.uri.startswith("skill://")]
        expected = [f"doctrine://{topic.name}" for topic in topics()]
        assert [each.uri for each in listed] == expected + [f"template://{kind}" for kind in template_kinds()]
        for each in listed:
            assert each.description and len(each.description) < 260 and "\n" not in each.description
            assert each.description.endswith(" kB)")
            text = (await client.read_resource(each.uri)).contents[0].text  # type: ignore[union-attr]
            assert each.size == len(text.encode())

    with_client(work)
