#!/usr/bin/env python3
"""Makes made.json beside this file anew: keys, certificates, log entries and signatures as cosign writes them.

Needs the Python package "cryptography". Private keys are thrown away. Certificates of Fulcio's kind are valid for ten
minutes of 1 February 2026, those of the PKI until 2036.
"""
import base64, datetime, hashlib, json, pathlib
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

DIGEST = "sha256:" + "ab" * 32
PAYLOAD = json.dumps({
    "critical": {
        "identity": {"docker-reference": "registry.example/app:v1"},
        "image": {"docker-manifest-digest": DIGEST},
        "type": "cosign container image signature",
    },
    "optional": None,
}, separators=(",", ":"))
SIGNED = datetime.datetime(2026, 2, 1, 12, 0, tzinfo=datetime.timezone.utc)
made = {"payload": PAYLOAD}


def b64(data):
    return base64.b64encode(data).decode()


def sign(key, data=PAYLOAD.encode()):
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data, ec.ECDSA(hashes.SHA256()))


def public_pem(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


def cert_pem(cert):
    return cert.public_bytes(serialization.Encoding.PEM).decode()


def p256():
    return ec.generate_private_key(ec.SECP256R1())


for name, key in {
    "p256": p256(),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
    "rsa": rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}.items():
    made[name + "_key"], made[name + "_signature"] = public_pem(key), b64(sign(key))
    if name == "rsa":
        form = serialization.PublicFormat.PKCS1
        made["rsa_old_key"] = key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

log = p256()
made["log_key"] = public_pem(log)


def bundle(key_pem, signature, when=SIGNED, payload=PAYLOAD.encode(), **changed):
    entry = {
        "apiVersion": "0.0.1",
        "kind": "hashedrekord",
        "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()}},
            "signature": {"content": signature, "publicKey": {"content": b64(key_pem.encode())}},
        },
    }
    entry.update(changed)
    body = {
        "body": b64(json.dumps(entry).encode()),
        "integratedTime": int(when.timestamp()),
        "logID": hashlib.sha256(made["log_key"].encode()).hexdigest(),
        "logIndex": 12345678,
    }
    canonical = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    # Cosign writes the keys in another order than the one that is signed.
    return json.dumps({"SignedEntryTimestamp": b64(sign(log, canonical)), "Payload": dict(reversed(body.items()))})


made["p256_bundle"] = bundle(made["p256_key"], made["p256_signature"])
made["p256_bundle_other_payload"] = bundle(made["p256_key"], made["p256_signature"], payload=b"other")
made["p256_bundle_other_signature"] = bundle(made["p256_key"], made["p384_signature"])
made["p256_bundle_other_key"] = bundle(made["p384_key"], made["p256_signature"])
made["p256_bundle_other_kind"] = bundle(made["p256_key"], made["p256_signature"], kind="intoto")
made["p256_bundle_other_version"] = bundle(made["p256_key"], made["p256_signature"], apiVersion="0.0.2")


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(subject, key, issuer, issuer_key, start, end, extensions):
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256())


def authority(path_length):
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return [(x509.BasicConstraints(True, path_length), True), (usage, True)]


LONG = datetime.datetime(2026, 1, 1), datetime.datetime(2036, 1, 1)
root_key, middle_key, other_key = p256(), p256(), p256()
root = certificate(name("root"), root_key, name("root"), root_key, *LONG, authority(1))
other = certificate(name("root"), other_key, name("root"), other_key, *LONG, authority(1))
code_signing = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
middle = certificate(name("middle"), middle_key, name("root"), root_key, *LONG, authority(0) + [(code_signing, False)])
made["root"], made["other_root"] = cert_pem(root), cert_pem(other)
made["chain"] = cert_pem(middle) + cert_pem(root)
made["middle"] = cert_pem(middle)

ISSUER = "https://accounts.example"
OLD, NEW = (ObjectIdentifier("1.3.6.1.4.1.57264.1." + last) for last in ("1", "8"))


def utf8(text):
    return bytes([0x0C, len(text)]) + text.encode()


def leaf(label, issuers, span, names, usage=code_signing, bundles=("",)):
    key = p256()
    extensions = [(usage, False), (x509.SubjectAlternativeName(names), True)]
    extensions += [(x509.UnrecognizedExtension(oid, value), False) for oid, value in issuers]
    cert = certificate(x509.Name([]), key, name("middle"), middle_key, *span, extensions)
    made[label], signature = cert_pem(cert), b64(sign(key))
    made[label + "_signature"] = signature
    for late in bundles:
        when = SIGNED + datetime.timedelta(hours=1 if late else 0)
        made[label + "_bundle" + late] = bundle(made[label], signature, when)


TEN_MINUTES = datetime.datetime(2026, 2, 1, 11, 55), datetime.datetime(2026, 2, 1, 12, 5)
EMAIL = [x509.RFC822Name("signer@example.com")]
leaf("fulcio", [(OLD, ISSUER.encode()), (NEW, utf8(ISSUER))], TEN_MINUTES, EMAIL, bundles=("", "_late"))
leaf("fulcio_old", [(OLD, ISSUER.encode())], TEN_MINUTES, EMAIL)
leaf("fulcio_new", [(NEW, utf8(ISSUER))], TEN_MINUTES, EMAIL)
leaf("fulcio_torn", [(OLD, ISSUER.encode()), (NEW, utf8("https://other.example"))], TEN_MINUTES, EMAIL)
leaf("fulcio_bare", [], TEN_MINUTES, EMAIL)
server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
leaf("fulcio_server", [(NEW, utf8(ISSUER))], TEN_MINUTES, EMAIL, usage=server)
leaf("pki", [], LONG, EMAIL + [x509.DNSName("*.signers.example"), x509.IPAddress(__import__("ipaddress").ip_address("10.0.0.1"))], bundles=())

text = json.dumps(made, indent=1, sort_keys=True)
pathlib.Path(__file__).with_name("made.json").write_text(text + "\n")
