# shellcheck shell=sh
# What the demo's scripts share: saying things, finding a free port.

if [ -t 1 ]; then
  bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
else
  bold='' dim='' plain=''
fi
say() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s   $ %s%s\n' "$dim" "$*" "$plain"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# A TCP port nobody listens on, at or after $1.
free_port() {
  port=$1
  while grep -Eq ":$(printf %04X "$port") 0+:0000 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do port=$((port + 1)); done
  echo "$port"
}
