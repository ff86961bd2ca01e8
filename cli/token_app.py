"""`stepwedge token`: the bearer tokens of DICOMweb clients, and how each command is typed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from stepwedge.ingest.v1.tokens_pb2 import Token
    from stepwedge.ingest.v1.tokens_pb2_grpc import TokenServiceStub

commands = typer.Typer(no_args_is_help=True, help="The bearer tokens of DICOMweb clients: create, list, revoke.")


class Scope(StrEnum):
    """What a token is good for."""

    STORE = "store"
    READ = "read"


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Settings (TOML). Default: what STEPWEDGE_CONFIG names, else ./stepwedge.toml, else built in.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]


@commands.command()
def create(
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="The system that it is for, as records name it.")],
    scope: Annotated[list[Scope], typer.Option("--scope", help="What it is good for; may be given twice.")],
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Days until it expires.")] = 90,
    config: Config = None,
    json: Json = False,
) -> None:
    """Make a token and print it, this once: nobody can be told it again."""
    from cli import terminal
    from stepwedge.ingest.v1 import tokens_pb2

    scopes = [tokens_pb2.TokenScope.Value(f"TOKEN_SCOPE_{one.name}") for one in scope]
    request = tokens_pb2.CreateTokenRequest(client=client, scopes=scopes, days=days)
    with _tokens(config) as stub:
        answer = stub.CreateToken(request, timeout=10)
    if json:
        terminal.emit({"bearer": answer.bearer, **_as_json(answer.token)})
        return
    terminal.out().print(answer.bearer, markup=False, highlight=False, soft_wrap=True)
    terminal.note(f"{_words(answer.token)}; it is not shown again")


@commands.command("list")
def list_tokens(config: Config = None, json: Json = False) -> None:
    """Show every token, newest first, without what it proves itself with."""
    from cli import terminal
    from stepwedge.ingest.v1 import tokens_pb2

    with _tokens(config) as stub:
        answer = stub.ListTokens(tokens_pb2.ListTokensRequest(), timeout=10)
    for token in answer.tokens:
        if json:
            terminal.emit(_as_json(token))
        else:
            terminal.out().print(_words(token), markup=False, highlight=False, soft_wrap=True)


@commands.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `list` shows it.")],
    config: Config = None,
    json: Json = False,
) -> None:
    """End a token at once."""
    from cli import terminal
    from stepwedge.ingest.v1 import tokens_pb2

    with _tokens(config) as stub:
        answer = stub.RevokeToken(tokens_pb2.RevokeTokenRequest(id=token_id), timeout=10)
    if json:
        terminal.emit(_as_json(answer.token))
    else:
        terminal.out().print(_words(answer.token), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _tokens(config: Path | None) -> Iterator[TokenServiceStub]:
    from cli import configuration, connect
    from shared.identity import Identity
    from stepwedge.ingest.v1 import tokens_pb2_grpc

    with connect.channel(configuration.load(config), "ingest", Identity.OPERATOR) as link:
        yield tokens_pb2_grpc.TokenServiceStub(link)


def _scopes(token: Token) -> list[str]:
    from stepwedge.ingest.v1 import tokens_pb2

    return [tokens_pb2.TokenScope.Name(scope).removeprefix("TOKEN_SCOPE_").lower() for scope in token.scopes]


def _words(token: Token) -> str:
    expires = token.expires_at.ToDatetime().strftime("%Y-%m-%d")
    revoked = f", revoked {token.revoked_at.ToDatetime():%Y-%m-%d}" if token.HasField("revoked_at") else ""
    return f"{token.id}  {token.client}  {'+'.join(_scopes(token))}  until {expires}{revoked}"


def _as_json(token: Token) -> dict[str, Any]:
    revoked = token.revoked_at.ToJsonString() if token.HasField("revoked_at") else None
    return {
        "id": token.id,
        "client": token.client,
        "scopes": _scopes(token),
        "created_at": token.created_at.ToJsonString(),
        "expires_at": token.expires_at.ToJsonString(),
        "revoked_at": revoked,
    }
