"""The command line around Triton: parse, call one function of `api`, print."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cofi_deploy.cli_options import Choice, common_options, print_json

_PORT = click.IntRange(1, 65535)
_server_url = click.option(
    "--url",
    help="HTTP address of the server that runs from the repository: it changes over now, or what "
    "it cannot load is taken back.",
)


def triton_export_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options of `export --format triton`."""
    options = (
        click.option(
            "--backend",
            help="Of a Triton repository.  [default: onnxruntime, or as in the version before]",
        ),
        click.option(
            "--repository",
            type=click.Path(path_type=Path, file_okay=False),
            help="Triton repository to add the model to: as the next version of a --name that "
            "it has.",
        ),
        click.option("--name", help="Of the model on a Triton server.  [default: the run's]"),
        _server_url,
        click.option(
            "--plan",
            "plans",
            multiple=True,
            type=click.Path(path_type=Path),
            help="Engine directory that --backend tensorrt serves; one for each kind of GPU.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="How Triton runs the model, for example instances=2 or threads=4; repeatable.",
        ),
        click.option(
            "--kserve",
            is_flag=True,
            help="Also write Kubernetes manifests, to <repository>-kubernetes.",
        ),
    )
    for option in reversed(options):  # the last one applied is the first one in the help
        function = option(function)
    return function


@click.command()
@click.argument("repository", required=False, type=click.Path(path_type=Path))
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on: this machine alone; 0.0.0.0: whoever reaches it, for Triton asks "
    "nobody for a password.",
)
@click.option("--http-port", type=_PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True)
@click.option(
    "--server",
    default="auto",
    show_default=True,
    type=Choice(["auto", "tritonserver", "container", "pip"]),
    help="tritonserver on PATH, a container, the server that a pip package ships, or the first of "
    "them that is here.",
)
@click.option(
    "--model-control",
    default="poll",
    show_default=True,
    type=Choice(["poll", "explicit", "none"]),
    help="How new versions are found: by looking, when told over HTTP, not at all.",
)
@click.option(
    "--poll-seconds",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Between two looks, with --model-control poll.",
)
@click.option(
    "--cache-mib",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Memory for answers to repeated questions; only models exported with a response cache "
    "use it.",
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Gets what the server says, appended.  "
    "[default: logs/triton-<port>.log below $COFI_DEPLOY_CACHE or ~/.cache/cofi-deploy]",
)
@click.option(
    "--ready-timeout",
    type=click.FloatRange(min=1.0),
    default=120.0,
    show_default=True,
    help="Seconds until every model must be ready.",
)
@click.option("--print-command", is_flag=True, help="Print what would be started, and end.")
@common_options
def serve(repository: Path | None, **flags: Any) -> None:
    """Start a Triton server on REPOSITORY (default: the Triton export of the newest run).

    Waits until every model is ready, prints what to ask and where (JSON on standard output), and
    stays until Ctrl-C.

    \b
    cofi-deploy serve
    cofi-deploy serve /srv/models --host 0.0.0.0 --http-port 8100
    cofi-deploy serve --server pip --print-command
    """
    from cofi_deploy.api.places import find_model

    if repository is None:
        find_model(None)  # answers at once where there is none
    from cofi_deploy.api import serving
    from cofi_deploy.serve.triton_command import ServerSettings

    settings = ServerSettings(**{name: flags[name] for name in vars(ServerSettings())})
    if flags["print_command"]:
        for line in serving.serve_command(repository, server=flags["server"], settings=settings):
            click.echo(line)
        return
    # A stop of the system is one of the user: the server must not outlive us.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serving.serve(
        repository,
        server=flags["server"],
        settings=settings,
        log=flags["log"],
        ready_timeout=flags["ready_timeout"],
        say=_say,
    ) as served:
        print_json(served.to_json())
        _say(served.describe())
        try:
            served.wait(_say)
        except KeyboardInterrupt:
            _say("stopping: requests in flight are still answered; Ctrl-C again: at once")
    _say("stopped")


@click.command()
@click.argument("repository", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--model", help="Name of the model, where the repository holds several.")
@_server_url
@common_options
def rollback(repository: Path, model: str | None, url: str | None) -> None:
    """Set the newest version of a served model aside, so that the one before it serves again.

    \b
    cofi-deploy rollback /srv/models
    cofi-deploy rollback /srv/models --model sentiment --url http://localhost:8000
    """
    from cofi_deploy.api import versions

    print_json(versions.rollback(repository, model, url=url))


def _say(line: str) -> None:
    click.echo(line, err=True)
