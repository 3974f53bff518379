"""Mesh authority and node certificates: create, issue, inspect, load."""

from meshnode.identity.authority import AUTHORITY_CERTIFICATE as AUTHORITY_CERTIFICATE
from meshnode.identity.authority import AUTHORITY_KEY as AUTHORITY_KEY
from meshnode.identity.authority import Authority as Authority
from meshnode.identity.authority import create_mesh as create_mesh
from meshnode.identity.authority import issue as issue
from meshnode.identity.inspection import CertificateReport as CertificateReport
from meshnode.identity.inspection import NodeIdentity as NodeIdentity
from meshnode.identity.inspection import identity_from_untrusted_names as identity_from_untrusted_names
from meshnode.identity.inspection import inspect as inspect
from meshnode.identity.inspection import load_identity as load_identity
