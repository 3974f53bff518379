"""``meshnode mesh``: make a mesh, make its nodes' certificates, and read them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.console.printing import print_json

if TYPE_CHECKING:
    from cryptography import x509

_PATH = click.Path(path_type=Path)


@click.group()
def mesh() -> None:
    """Make a mesh and the certificates of its nodes."""


@mesh.command(name="init")
@click.option("--name", required=True, help="Name of the mesh: lower-case letters, digits, inner hyphens.")
@click.option("--days", type=click.FloatRange(0, min_open=True), default=3650, show_default=True,
              help="Days that the authority is valid.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("folder", type=_PATH)
def init(name: str, days: float, as_json: bool, folder: Path) -> None:
    """Make a new mesh: its authority's certificate and key, in FOLDER.

    Whoever has authority.key can make nodes of this mesh: never copy it to a node.
    """
    from meshnode.identity import create_mesh

    made = create_mesh(folder, name, valid_days=days)
    if as_json:
        print_json({
            "mesh": made.mesh, "certificate": str(made.certificate), "key": str(made.key),
            "not_after": made.not_after.isoformat(), "fingerprint": made.fingerprint,
        })  # fmt: skip
        return
    click.echo(f"mesh {made.mesh}: {made.certificate} and {made.key}, until {made.not_after:%Y-%m-%d}")
    click.echo(f"next: meshnode mesh issue --role vehicle --id veh-1 --out veh-1 {folder}")


@mesh.command()
@click.option("--role", required=True, type=click.Choice(["vehicle", "rsu", "relay", "tool"]))
@click.option("--id", "node", required=True, help="Id of the node: lower-case letters, digits, inner hyphens.")
@click.option("--days", type=click.FloatRange(0, min_open=True), default=30, show_default=True,
              help="Days that the certificate is valid.")  # fmt: skip
@click.option("--out", "out_folder", required=True, type=_PATH, help="Folder for the node's files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("authority_folder", type=_PATH)
def issue(role: str, node: str, days: float, out_folder: Path, as_json: bool, authority_folder: Path) -> None:
    """Make the certificate and key of a node, signed by the authority in AUTHORITY_FOLDER.

    Issuing again for the same id renews it.
    """
    from meshnode.identity import issue as issue_identity

    made = issue_identity(authority_folder, role, node, out_folder, valid_days=days)
    files = made.credentials
    if as_json:
        print_json({
            "mesh": made.peer.mesh, "role": made.peer.role.value, "id": made.peer.node,
            "certificate": str(files.certificate), "key": str(files.key), "authority": str(files.authority),
            "not_before": made.not_before.isoformat(), "not_after": made.not_after.isoformat(),
            "serial": f"{made.serial:x}", "fingerprint": made.fingerprint,
        })  # fmt: skip
        return
    peer = made.peer
    click.echo(f"{peer.role.value} {peer.node} of {peer.mesh}, until {made.not_after:%Y-%m-%d %H:%M} UTC")
    for path in (files.certificate, files.key, files.authority):
        click.echo(f"  {path}")


@mesh.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("certificates", nargs=-1, required=True, type=_PATH, metavar="CERT...")
def show(certificates: tuple[Path, ...], as_json: bool) -> None:
    """Show whose certificates these are and how long they are valid.

    The exit status is 1 when a mesh would not accept one of them now.
    """
    from meshnode.identity.pem_files import read_certificate

    reports = [_report(path, read_certificate(path, "certificate")) for path in certificates]
    if as_json:
        print_json(reports)
    else:
        for report in reports:
            click.echo(f"{report['file']}: {report['what']}")
            click.echo(f"  valid        {report['not_before']} to {report['not_after']}")
            click.echo(f"  days left    {report['days_left']}")
            click.echo(f"  serial       {report['serial']}")
            click.echo(f"  fingerprint  {report['fingerprint']}")
            for problem in report["problems"]:
                click.echo(f"  PROBLEM      {problem}")
    if any(report["problems"] for report in reports):
        click.get_current_context().exit(1)


def _report(path: Path, certificate: "x509.Certificate") -> dict[str, Any]:
    from cryptography import x509

    from meshnode.identity.inspection import fingerprint, identity_from_untrusted_names, mesh_of_authority
    from protocols.base.errors import InvalidName

    now = datetime.now(UTC)
    problems: list[str] = []
    node: dict[str, str] | None = None
    mesh_name = mesh_of_authority(certificate)
    if mesh_name is not None:
        what = f"authority of mesh {mesh_name}"
    else:
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            peer = identity_from_untrusted_names(names.get_values_for_type(x509.UniformResourceIdentifier))
            mesh_name, node = peer.mesh, {"role": peer.role.value, "id": peer.node}
            what = f"{peer.role.value} {peer.node} of mesh {peer.mesh}"
        except (x509.ExtensionNotFound, InvalidName) as error:
            what = "not of a mesh"
            problems.append(f"it names no node and no mesh ({error}): issue one with 'meshnode mesh issue'")
    if now > certificate.not_valid_after_utc:
        problems.append("it has expired: issue it again with 'meshnode mesh issue'")
    if now < certificate.not_valid_before_utc:
        problems.append("it is not valid yet: check this host's clock")
    return {
        "file": str(path),
        "what": what,
        "mesh": mesh_name,
        "node": node,
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "days_left": round((certificate.not_valid_after_utc - now).total_seconds() / 86_400, 1),
        "serial": f"{certificate.serial_number:x}",
        "fingerprint": fingerprint(certificate),
        "problems": problems,
    }
