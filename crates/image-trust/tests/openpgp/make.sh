#!/bin/sh
# Makes the keys and messages beside this file anew, with gpg 2.2 or later. Times are made up, so that tests know them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export GNUPGHOME
GNUPGHOME=$(mktemp -d)
trap 'gpgconf --kill all; rm -rf "$GNUPGHOME"' EXIT
cd "$GNUPGHOME"
gpg() { command gpg --quiet --batch --yes --no-tty --passphrase '' --pinentry-mode loopback "$@" 2>/dev/null; }
made=20260101T000000
at() { time=$1; shift; gpg --faked-system-time "$time" "$@"; }
finger() { gpg --with-colons --list-keys "$1" | awk -F: '$1 == "fpr" { print $10 }' | sed -n "${2:-1}p"; }
printf 'what is signed\n' >text

# A key of each kind that is verified, one that is not, one that ends after a year.
for kind in ed25519 rsa3072 nistp256 nistp384 dsa2048; do
	at $made --quick-generate-key "$kind@example.com" "$kind" sign never
	at 20260201T000000 --local-user "$kind@example.com" --output "$here/$kind.sig" --sign text
	gpg --export "$kind@example.com" >"$here/$kind.key"
done
gpg --armor --export ed25519@example.com >"$here/ed25519.asc"
at $made --quick-generate-key ends@example.com ed25519 sign 1y
at 20260201T000000 --local-user ends@example.com --output "$here/ends.sig" --sign text
gpg --export ends@example.com >"$here/ends.key"

# Other messages of the same key.
ed() { at 20260201T000000 --local-user ed25519@example.com "$@"; }
ed --compress-algo none --output "$here/plain.sig" --sign text
ed --compress-algo zlib --output "$here/zlib.sig" --sign text
ed --digest-algo SHA512 --output "$here/sha512.sig" --sign text
ed --digest-algo SHA1 --output "$here/sha1.sig" --sign text
ed --default-sig-expire 30 --output "$here/short.sig" --sign text
ed --textmode --output "$here/textmode.sig" --sign text
ed --local-user rsa3072@example.com --output "$here/two.sig" --sign text
ed --detach-sign --output "$here/detached.sig" text

# A primary key that may only certify, with a subkey that signs and one that is taken back later.
at $made --quick-generate-key main@example.com ed25519 cert never
main=$(finger main@example.com)
at $made --quick-add-key "$main" ed25519 sign never
at 20260201T000000 --local-user "$(finger main@example.com 2)!" --output "$here/sub.sig" --sign text
gpg --export "$main" >"$here/main.key"
printf 'key 1\nrevkey\ny\n0\n\ny\nsave\n' | at 20260301T000000 --command-fd 0 --expert --edit-key "$main"
gpg --export "$main" >"$here/main-sub-revoked.key"

# A key that is revoked later, as gpg's own certificate of revocation does it.
at $made --quick-generate-key gone@example.com ed25519 sign never
at 20260201T000000 --local-user gone@example.com --output "$here/gone.sig" --sign text
gpg --export gone@example.com >"$here/gone.key"
sed 's/^:---/---/' "openpgp-revocs.d/$(finger gone@example.com).rev" | gpg --import
gpg --export gone@example.com >"$here/gone-revoked.key"
