#!/usr/bin/env bash
# What the other scripts do on each worker: on_worker.sh setup BUCKET | start COMMAND | status
set -euo pipefail
cd "$HOME"
shared=/mnt/zeroprompt

fail() { printf 'on_worker.sh: %s: %s\n' "$HOSTNAME" "$*" >&2; exit 1; }

setup() {
  python3 -m pip install --quiet --user --upgrade uv # the images' own Python is too old
  [ -d venv ] || python3 -m uv venv --quiet --python 3.12 venv
  python3 -m uv pip install --quiet --python venv/bin/python -e "$HOME/zeroprompt_jax[tpu]"
  if ! command -v gcsfuse > /dev/null; then
    local source=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
    curl -fsS "$source/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    sudo apt-get update --quiet --quiet
    sudo apt-get install --quiet --quiet --yes gcsfuse
  fi
  sudo mkdir -p "$shared"
  sudo chown "$USER" "$shared"
  mountpoint --quiet "$shared" || gcsfuse --implicit-dirs "$1" "$shared"
}

start() {
  mountpoint --quiet "$shared" || fail "nothing is mounted at $shared; run setup.sh"
  exec 9> zeroprompt.lock
  flock --nonblock 9 || fail 'a command still runs here' # what runs holds the lock
  rm -f zeroprompt.exit
  export PATH="$HOME/venv/bin:$PATH" JAX_COMPILATION_CACHE_DIR="$shared/jax_cache"
  cd zeroprompt_jax
  # shellcheck disable=SC2016
  setsid nohup bash -c '"$@"; echo "$?" > "$HOME/zeroprompt.exit"' bash "$@" >> "$HOME/zeroprompt.log" 2>&1 < /dev/null &
}

status() {
  if [ -e zeroprompt.exit ]; then
    echo "status $(cat zeroprompt.exit)"
  elif flock --nonblock zeroprompt.lock true; then
    echo 'status none'
  else
    echo 'status running'
  fi
}

"$@"
