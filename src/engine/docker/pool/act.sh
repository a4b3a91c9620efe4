# Acts on the data directories of the pool. Runs as root, in the server's container where it runs, else
# in one made for this. Arguments: the pool's folder, the environment, the file that means "held", the
# act and what it needs.
set -eu
root="$1" env="$root/envs/$2" held="$3" act="$4"
shift 4
# points ACT ...: the frozen data is that of this environment's points, not the images of all.
if [ "$act" = points ]; then
  root="$env" act="$1"
  shift
fi

fail() {
  echo "$*" >&2
  exit 1
}

# Stops the server of this container, if it is one, and keeps it down until this script has ended.
hold() {
  echo "$$" >"$held"
  trap release EXIT
  pid=$(head -n 1 "$env/current/postmaster.pid" 2>/dev/null || true)
  [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null || true)" = postgres ] || return 0
  kill -INT "$pid" 2>/dev/null || return 0
  turn=0
  while kill -0 "$pid" 2>/dev/null; do
    [ "$turn" -lt 9000 ] || fail "the server did not stop within 90 s"
    sleep 0.01
    turn=$((turn + 1))
  done
  for found in /proc/[0-9]*/comm; do
    [ "$(cat "$found" 2>/dev/null || true)" != postgres ] || fail "a server runs that could not be stopped"
  done
}

# Lets the server come up, unless another act holds it by now.
release() {
  [ "$(cat "$held" 2>/dev/null || true)" != "$$" ] || rm -f "$held"
}

# A copy of a data directory that shares its blocks; whole or not there.
clone() {
  rm -rf "$2" "$2.part"
  cp -a --reflink=always "$1" "$2.part"
  rm -f "$2.part/postmaster.pid" "$2.part/postmaster.opts"
  mv "$2.part" "$2"
}

stopped_cleanly() {
  LC_ALL=C pg_controldata "$1" | grep -q '^Database cluster state: *shut down$' \
    || fail "the server of $1 was not stopped cleanly"
}

point() {
  ln -sfn "$2" "$env/$1.new"
  mv -T "$env/$1.new" "$env/$1"
}

sweep_generations() {
  current=$(readlink "$env/current" || true)
  kept=$(readlink "$env/kept" || true)
  previous=$(readlink "$env/previous" || true)
  for found in "$env"/g-*; do
    case "${found##*/}" in
      "$current" | "$kept" | "$previous") ;;
      *) rm -rf "$found" ;;
    esac
  done
}

case "$act" in
  # freeze NAME FACTS...: the current data as an image. The facts come in pieces, to be put together.
  freeze)
    image="$root/images/$1"
    hold
    stopped_cleanly "$env/current/"
    # Another project may freeze the same.
    part="$root/images/.$1.${env##*/}"
    rm -rf "$part"
    mkdir -p "$part"
    clone "$env/current/" "$part/data"
    # Nor may it have come up meanwhile.
    stopped_cleanly "$env/current/"
    release
    shift
    printf '%s' "$@" >"$part/image.json"
    [ ! -d "$image" ] || mv -T "$image" "$root/images/.gone.${env##*/}.$$"
    mv -T "$part" "$image"
    rm -rf "$root/images"/.gone.*
    ;;
  # adopt GENERATION FOLDER: data from elsewhere becomes the environment's.
  adopt)
    mkdir -p "$env"
    chmod 711 "$root" "$root/envs" "$env"
    stopped_cleanly "$2"
    rm -rf "$env/$1" "$env"/*.part
    trap 'rm -rf "$env"/*.part' EXIT
    cp -a "$2" "$env/$1.part"
    mv "$env/$1.part" "$env/$1"
    # The volume that it came from is removed next.
    sync
    point current "$1"
    sweep_generations
    ;;
  # replace NAME GENERATION: the environment becomes a clone of an image. Prints what it was.
  replace)
    image="$root/images/$1"
    [ -f "$image/image.json" ] || fail "the image $1 is gone"
    clone "$image/data" "$env/$2"
    # What `alter system` has set here belongs to the environment.
    cp -p "$env/current/postgresql.auto.conf" "$env/$2/auto.new"
    mv "$env/$2/auto.new" "$env/$2/postgresql.auto.conf"
    old=$(readlink "$env/current")
    hold
    # Whoever is cut off before `settle` finds here what was served.
    point previous "$old"
    point current "$2"
    printf '%s\n' "$old"
    ;;
  # switch GENERATION: back to data that is there still. Prints what it was.
  switch)
    [ -f "$env/$1/PG_VERSION" ] || fail "the data $1 is gone"
    old=$(readlink "$env/current")
    hold
    point previous "$old"
    point current "$1"
    printf '%s\n' "$old"
    ;;
  # settle [GENERATION]: keeps that one beside the current one, and removes all others.
  settle)
    if [ -n "${1:-}" ]; then point kept "$1"; else rm -f "$env/kept"; fi
    rm -f "$env/previous"
    sweep_generations
    ;;
  # facts NAME: of one image; nothing where there is none.
  facts) cat "$root/images/$1/image.json" 2>/dev/null || true ;;
  # kept: what can be brought back; nothing where there is nothing.
  kept)
    current=$(readlink "$env/current" || true)
    for link in previous kept; do
      found=$(readlink "$env/$link" || true)
      if [ -n "$found" ] && [ "$found" != "$current" ] && [ -d "$env/$found" ]; then
        echo "$found"
        break
      fi
    done
    ;;
  # probe: whether copies share blocks here.
  probe)
    mkdir -p "$root/images" "$root/envs"
    : >"$root/.probe.$$"
    trap 'rm -f "$root/.probe.$$" "$root/.probe.$$.copy"' EXIT
    cp --reflink=always "$root/.probe.$$" "$root/.probe.$$.copy"
    ;;
  # list: a line for each image: name, its size in kB, its facts.
  list)
    for found in "$root/images"/*/image.json; do
      [ -f "$found" ] || continue
      folder=${found%/image.json}
      size=$(du -sk "$folder/data" | cut -f 1)
      printf '%s\t%s\t%s\n' "${folder##*/}" "$size" "$(cat "$found")"
    done
    ;;
  # drop NAME ...: removes images, and what was left over of others.
  drop)
    for name in "$@"; do
      [ ! -d "$root/images/$name" ] || mv -T "$root/images/$name" "$root/images/.gone.$name.$$"
    done
    rm -rf "$root/images"/.gone.*
    ;;
  # leave: removes the environment. Prints how many others there are.
  leave)
    rm -rf "$env"
    set -- "$root/envs"/*
    if [ -e "$1" ]; then echo "$#"; else echo 0; fi
    ;;
  *) fail "no such act: $act" ;;
esac
