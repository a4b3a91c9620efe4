# Acts on the data directories of the pool. Runs as root, in the server's container where it runs, else
# in one made for this. Arguments: the pool's folder, the folder that its file lies in, the environment,
# the file that means "held", the act and what it needs.
#
# Locks end with whoever holds them: one act at a time in an environment, and no image goes while it is
# cloned. `flock` takes no limit in busybox, so it is asked again and again.
set -eu
root="$1" files="$2" env="$root/envs/$3" held="$4" act="$5"
shift 5
# points ACT ...: the frozen data is that of this environment's points, not the images of all.
frozen="$root/images" shelf=images
if [ "$act" = points ]; then
  frozen="$env/images" shelf=points act="$1"
  shift
fi

fail() {
  echo "$*" >&2
  exit 1
}

# lock FD FILE HOW: 120 s at most.
lock() {
  turn=0
  while ! flock -n "$3" "$1"; do
    [ "$turn" -lt 1200 ] || fail "another run works there: it holds $2"
    sleep 0.1
    turn=$((turn + 1))
  done
}

lock_env() {
  mkdir -p "$env"
  exec 8>"$env/.lock"
  lock 8 "$env" -x
}

# lock_images -s: none goes; -x: they change.
lock_images() {
  mkdir -p "$frozen"
  exec 9>"$frozen/.lock"
  lock 9 "$frozen" "$1"
}

# The daemon makes a volume that is missing, empty: the pool was removed a moment ago.
in_pool() {
  [ -d "$root/envs" ] || fail "the pool is gone"
}

free_in() {
  df -Pk "$1" | tail -n 1 | awk '{ print $4 }'
}

# The pool's file takes its place on the disk below only as it is written. Without this its file system
# would promise more than that disk has, and what does not fit there is lost without a word: the kernel
# fails the write when the server has long been told that it is done. So what the disk below has not is
# taken up by a file that nothing is ever written to, and whoever wants too much is told at once.
ballast() {
  [ -d "$files" ] || return 0
  exec 7>"$root/.ballast.lock"
  # Somebody else does it.
  flock -n 7 || return 0
  taken=0
  [ ! -f "$root/.ballast" ] || taken=$(du -k "$root/.ballast" | cut -f 1)
  wanted=$(($(free_in "$root") + taken - ($(free_in "$files") - reserve)))
  [ "$wanted" -gt 0 ] || wanted=0
  if [ "$wanted" -lt "$taken" ]; then
    truncate -s "${wanted}K" "$root/.ballast"
  elif [ "$wanted" -gt "$taken" ]; then
    fallocate -l "${wanted}K" "$root/.ballast"
  fi
  exec 7>&-
}

# room KILOBYTES: on the disk below, where the pool's file lies, and in the pool.
room() {
  if [ -d "$files" ]; then
    free=$(($(free_in "$files") - reserve))
    [ "$free" -ge "$1" ] || fail "no space below: $((free / 1024)) MB can be used, $(($1 / 1024)) MB are needed"
  fi
  # A disk that is nearly full is no reason not to try.
  (ballast) || true
  free=$(free_in "$root")
  [ "$free" -ge "$1" ] || fail "no space: $((free / 1024)) MB are left, $(($1 / 1024)) MB are needed"
}

# hold [SIGNAL]: stops the server of this container, if it is one, and keeps it down until this script has ended.
hold() {
  echo "$$" >"$held"
  trap release EXIT
  # Without a program: one that fails here would mean that no server runs.
  pid= name=
  { read -r pid <"$env/current/postmaster.pid"; } 2>/dev/null || true
  { [ -z "$pid" ] || read -r name <"/proc/$pid/comm"; } 2>/dev/null || true
  [ "$name" = postgres ] || return 0
  kill -"${1:-INT}" "$pid" 2>/dev/null || return 0
  turn=0
  while kill -0 "$pid" 2>/dev/null; do
    [ "$turn" -lt 9000 ] || fail "the server did not stop within 90 s"
    sleep 0.01
    turn=$((turn + 1))
  done
  # No program is started for each of them: that took 30 ms of every reset.
  for found in /proc/[0-9]*/comm; do
    name=
    { read -r name <"$found"; } 2>/dev/null || true
    [ "$name" != postgres ] || fail "a server runs that could not be stopped"
  done
}

# Lets the server come up, unless another act holds it by now.
release() {
  [ "$(cat "$held" 2>/dev/null || true)" != "$$" ] || rm -f "$held"
}

# how_to_stop [LINE]: the signal. Whoever gave a line is told it, and answers whether the server may be stopped at
# once. It would come up with its unlogged tables empty.
how_to_stop() {
  signal=INT
  [ -n "$1" ] || return 0
  echo "$1"
  read -r how || fail "nobody waits for it any more"
  [ "$how" = immediate ] || return 0
  for found in "$env"/current/base/*/*_init "$env"/current/pg_tblspc/*/*/*/*_init; do
    [ ! -e "$found" ] || return 0
  done
  signal=QUIT
}

# A copy of a data directory that shares its blocks; whole or not there.
clone() {
  rm -rf "$2" "$2.part"
  # What fails for want of room leaves none of it taken.
  cp -a --reflink=always "$1" "$2.part" || { rm -rf "$2.part"; exit 1; }
  rm -f "$2.part/postmaster.pid" "$2.part/postmaster.opts"
  mv "$2.part" "$2"
}

stopped_as_clean() {
  LC_ALL=C pg_controldata "$1" | grep -q '^Database cluster state: *shut down$'
}

stopped_cleanly() {
  stopped_as_clean "$1" || fail "the server of $1 was not stopped cleanly"
}

point() {
  ln -sfn "$2" "$env/$1.new"
  mv -T "$env/$1.new" "$env/$1"
}

# What no link names, links that were on their way, and halves of images that this environment was freezing or
# taking.
sweep_generations() {
  kept= previous=
  # Whatever goes wrong here, what is served stays.
  current=$(readlink "$env/current")
  [ -f "$env/$current/PG_VERSION" ] || fail "$env has no data"
  [ ! -L "$env/kept" ] || kept=$(readlink "$env/kept")
  [ ! -L "$env/previous" ] || previous=$(readlink "$env/previous")
  rm -f "$env"/*.new
  for found in "$root/images"/.*."${env##*/}" "$env/images"/.*."${env##*/}"; do
    # Whoever still writes to it has no place for it any more.
    gone="${found%/*}/.gone.${env##*/}.$$"
    case "${found##*/}" in .passing.*) ;; *) ! mv -T "$found" "$gone" 2>/dev/null || rm -rf "$gone" || true ;; esac
  done
  rm -rf "$root/images/.gone.${env##*/}".* "$env/images/.gone.${env##*/}".* || true
  for found in "$env"/g-*; do
    case "${found##*/}" in
      "$current" | "$kept" | "$previous") ;;
      *) rm -rf "$found" ;;
    esac
  done
}

# came_from IMAGE FOLDER: says so in a data directory. What is cloned from a point came from where that did.
came_from() {
  [ "$shelf" != points ] || return 0
  # The server's own, as all beside it: else a base backup could not read it.
  cp -p "$2/PG_VERSION" "$2/seedbed.new" && printf '%s\n' "$1" >"$2/seedbed.new" \
    && mv "$2/seedbed.new" "$2/seedbed.from" || rm -f "$2/seedbed.new"
}

# settle GENERATION: keeps that one, if any, beside the current one.
settle() {
  if [ -n "$1" ]; then point kept "$1"; else rm -f "$env/kept"; fi
  rm -f "$env/previous"
  sweep_generations
}

# passed IMAGE: one that this environment alone goes on from is not wanted any more.
passed() {
  case "$1" in .passing.*) rm -rf "$frozen/$1" ;; esac
}

# served OLD IMAGE: says what was served until now, lets the server come up on what is to be, and is told on
# standard input whether it has: `settle GENERATION`. Without a word nothing is removed.
served() {
  passed "$2"
  printf '%s\n' "$1"
  release
  read -r word kept || return 0
  [ "$word" != settle ] || settle "$kept"
}

# clone_image NAME GENERATION
clone_image() {
  lock_images -s
  [ -f "$frozen/$1/image.json" ] || fail "the image $1 is gone"
  clone "$frozen/$1/data" "$env/$2"
  # Its age counts from here.
  touch "$frozen/$1/image.json"
  exec 9>&-
  came_from "$1" "$env/$2"
}

# try_blank NAME FOLDER KILOBYTES: as `keep_blank`. Without it others only take longer: whatever fails is nobody's error,
# and leaves nothing.
try_blank() {
  (keep_blank "$@") || rm -rf "$root/blank"/.*."${env##*/}" || true
}

# keep_blank NAME FOLDER KILOBYTES: an empty cluster that others of the project begin with, where so much has room.
# Its name begins with the project's hash.
keep_blank() {
  [ -n "$1" ] || return 0
  part="$root/blank/.$1.${env##*/}"
  rm -rf "$part"
  [ ! -f "$root/blank/$1/PG_VERSION" ] || [ ! -s "$root/blank/$1.room" ] || return 0
  mkdir -p "$root/blank" && stopped_as_clean "$2" || return 0
  cp -a --reflink=auto "$2" "$part" && rm -f "$part/postmaster.pid" "$part/postmaster.opts" "$part/seedbed.from" \
    && { sync -f "$part" 2>/dev/null || sync; } && lock_blank -x && drop_blanks "${1%%-*}" \
    && printf '%s\n' "$3" >"$root/blank/$1.room" && mv -T "$part" "$root/blank/$1"
  rm -rf "$part"
}

# drop_blanks BEGINNING: of all names. Half of one is never found.
drop_blanks() {
  rm -rf "$root/blank"/.gone.*."${env##*/}"
  for found in "$root/blank/$1"*; do
    [ ! -e "$found" ] || mv -T "$found" "$root/blank/.gone.${found##*/}.${env##*/}"
  done
  rm -rf "$root/blank"/.gone.*."${env##*/}"
}

# lock_blank -s: none goes; -x: they change. Nobody waits for it.
lock_blank() {
  exec 9>"$root/blank/.lock"
  flock -n "$1" 9
}

# about JSON: whose environment it is, for people.
about() {
  [ "$(cat "$env/about.json" 2>/dev/null || true)" = "$1" ] || printf '%s\n' "$1" >"$env/about.json"
}

# own FOLDER: kilobytes of its files that nothing else shares, as the file system says (FIEMAP); `-`
# where there is no Perl to ask it.
own() {
  command -v perl >/dev/null || { echo -; return 0; }
  find "$1/" -type f | perl -e '
    my $own = 0;
    while (my $path = <STDIN>) {
      chomp $path;
      open(my $file, "<", $path) or next;
      my ($start, $last) = (0, 0);
      while (!$last) {
        # struct fiemap with room for 64 struct fiemap_extent of 56 bytes (linux/fiemap.h).
        my $map = pack("QQLLLL", $start, ~0, 0, 0, 64, 0) . "\0" x (64 * 56);
        ioctl($file, 0xC020660B, $map) or last;
        my $count = (unpack("QQLLLL", $map))[3] or last;
        for my $at (0 .. $count - 1) {
          my ($logical, $length, $flags) = unpack("QxxxxxxxxQx16L", substr($map, 32 + 56 * $at, 56));
          $own += $length unless $flags & 0x2000;
          ($start, $last) = ($logical + $length, $flags & 1);
        }
      }
    }
    printf "%d\n", ($own + 1023) / 1024;
  '
}

# What is set by hand on a server belongs to the environment, not to its image.
carry_settings() {
  for name in postgresql.conf postgresql.auto.conf pg_hba.conf pg_ident.conf; do
    [ -f "$1/$name" ] || continue
    cp -p "$1/$name" "$2/.new"
    mv "$2/.new" "$2/$name"
  done
}

# What the disk below needs for itself, and what others write to it until somebody looks again.
reserve=262144
# A clone needs next to nothing; a server that is given no more than that cannot work.
spare=131072

case "$act" in
  # Where there is none yet, these find nothing.
  probe | adopt | take | here | begin | unbegin | leave | list | sharers | facts | kept) ;;
  *) in_pool ;;
esac
case "$act" in
  # freeze NAME FACTS ABOUT: the current data as an image.
  freeze)
    lock_env
    room "$spare"
    image="$frozen/$1"
    # What a run of this environment that was cut off has left.
    rm -rf "$frozen"/.*."${env##*/}"
    hold
    stopped_cleanly "$env/current/"
    # Another project may freeze the same.
    part="$frozen/.$1.${env##*/}"
    rm -rf "$part"
    mkdir -p "$part"
    clone "$env/current/" "$part/data"
    # Nor may it have come up meanwhile.
    stopped_cleanly "$env/current/"
    release
    [ "$shelf" = points ] || rm -f "$part/data/seedbed.from"
    printf '%s\n' "$2" >"$part/image.json"
    about "$3"
    came_from "$1" "$env/current"
    lock_images -x
    [ ! -d "$image" ] || mv -T "$image" "$frozen/.gone.${env##*/}.$$"
    mv -T "$part" "$image"
    rm -rf "$frozen"/.gone.*
    ;;
  # receive NAME KILOBYTES: data from elsewhere as an image; standard input is an archive of the folder
  # `data` and, last, `image.json`.
  receive)
    room "$(($2 + spare))"
    image="$frozen/$1"
    rm -rf "$frozen"/.*."${env##*/}"
    # Of this container alone: one that was cut off a moment ago may be tidying up still.
    part="$frozen/.$1.$(hostname).${env##*/}"
    trap 'rm -rf "$part"' EXIT
    mkdir -p "$part"
    tar -x -f - -C "$part"
    [ -f "$part/image.json" ] || fail "the archive was cut off"
    chown -R postgres:postgres "$part/data"
    stopped_cleanly "$part/data"
    # Under its name it is whole also after a power cut. A clone waits for the same writes: with this one
    # before it both took no longer than the clone alone (600 MB, three times).
    sync -f "$part" 2>/dev/null || sync
    lock_images -x
    [ ! -d "$image" ] || mv -T "$image" "$frozen/.gone.${env##*/}.$$"
    mv -T "$part" "$image"
    rm -rf "$frozen"/.gone.*
    ;;
  # adopt GENERATION FOLDER ABOUT [KILOBYTES [BLANK]]: data from elsewhere becomes the environment's, where so much
  # more has room.
  adopt)
    in_pool
    lock_env
    chmod 711 "$root" "$root/envs" "$env"
    stopped_cleanly "$2"
    room "$(($(du -sk "$2" | cut -f 1) + ${4:-0} + spare))"
    rm -rf "$env/$1" "$env"/*.part
    trap 'rm -rf "$env"/*.part' EXIT
    cp -a "$2" "$env/$1.part"
    mv "$env/$1.part" "$env/$1"
    about "$3"
    try_blank "${5:-}" "$env/$1" "${4:-0}"
    # The volume that it came from is removed next.
    sync
    # Of a move that failed before.
    rm -f "$env/previous" "$env/kept"
    point current "$1"
    sweep_generations
    ;;
  # take NAME GENERATION FOLDER ABOUT [BLANK]: an environment whose data lies elsewhere, and is not wanted any
  # more, becomes a clone of an image.
  take)
    in_pool
    lock_env
    chmod 711 "$root" "$root/envs" "$env"
    room "$spare"
    clone_image "$1" "$2"
    carry_settings "$3" "$env/$2"
    about "$4"
    try_blank "${5:-}" "$3" "$(($(du -sk "$env/$2" | cut -f 1) * 3))"
    # The volume with the old data is removed next.
    sync
    # Of a move that failed before.
    rm -f "$env/previous" "$env/kept"
    point current "$2"
    sweep_generations
    passed "$1"
    ;;
  # replace NAME GENERATION ABOUT [LINE]: the environment becomes a clone of an image, see `served` and `how_to_stop`.
  replace)
    lock_env
    room "$spare"
    clone_image "$1" "$2"
    carry_settings "$env/current" "$env/$2"
    about "$3"
    old=$(readlink "$env/current")
    how_to_stop "${4:-}"
    hold "$signal"
    # Whoever is cut off before `settle` finds here what was served.
    point previous "$old"
    point current "$2"
    served "$old" "$1"
    ;;
  # switch GENERATION: back to data that is there still, see `served`.
  switch)
    lock_env
    [ -f "$env/$1/PG_VERSION" ] || fail "the data $1 is gone"
    old=$(readlink "$env/current")
    hold
    point previous "$old"
    point current "$1"
    served "$old" ""
    ;;
  # settle [GENERATION]: keeps that one beside the current one, and removes all others.
  settle)
    lock_env
    settle "${1:-}"
    ;;
  # unwind: after a replacement that did not start, which nobody wants back.
  unwind)
    lock_env
    rm -f "$env/previous"
    sweep_generations
    ;;
  # free: kilobytes in the pool, as far as the disk below it has them.
  free)
    (ballast) || true
    free_in "$root"
    ;;
  # facts NAME: of one image; nothing where there is none.
  facts) cat "$frozen/$1/image.json" 2>/dev/null || true ;;
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
  # here: whether the environment has data in the pool; prints the folder's name.
  here) readlink "$env/current" || true ;;
  # begin GENERATION BLANK ABOUT: the same; where it has none, and the project has an empty cluster there, it begins
  # with a clone of that, and its name is printed.
  begin)
    # Where what it is for has no room, it begins elsewhere.
    needed=$(cat "$root/blank/$2.room" 2>/dev/null || true)
    if [ ! -L "$env/current" ] && [ -n "$needed" ] && (room "$((needed + spare))") 2>/dev/null; then
      lock_env
      chmod 711 "$env"
      if (lock_blank -s && [ -f "$root/blank/$2/PG_VERSION" ] && clone "$root/blank/$2" "$env/$1"); then
        about "$3"
        point current "$1"
      fi
      [ ! -L "$env/current" ] || sweep_generations
    fi
    readlink "$env/current" || true
    ;;
  # unbegin BLANK: an environment that could not begin with it is gone, and so is that.
  unbegin)
    lock_env
    rm -rf "$env"
    [ ! -d "$root/blank" ] || ! lock_blank -x || drop_blanks "$1"
    ;;
  # probe: whether copies share blocks here.
  probe)
    # Each container counts its processes from 1.
    probe="$root/.probe.$(hostname).$$"
    : >"$probe"
    trap 'rm -f "$probe" "$probe.copy"' EXIT
    cp --reflink=always "$probe" "$probe.copy"
    mkdir -p "$root/images" "$root/envs"
    ;;
  # list: a line for each image: `image`, name, its size in kB, when it was last used in seconds, its facts;
  # `used` and the name of each that an environment came from; `capacity` and the kB of a pool.
  list)
    [ ! -d "$files" ] || printf 'capacity\t%s\n' "$(df -Pk "$root" | tail -n 1 | awk '{ print $2 }')"
    for found in "$root/envs"/*/current/seedbed.from; do
      [ ! -f "$found" ] || printf 'used\t%s\n' "$(cat "$found")"
    done
    for found in "$frozen"/*/image.json; do
      [ -f "$found" ] || continue
      folder=${found%/image.json}
      size=$(du -sk "$folder/data" | cut -f 1)
      used=$(stat -c %Y "$found")
      printf 'image\t%s\t%s\t%s\t%s\n' "${folder##*/}" "$size" "$used" "$(cat "$found")"
    done
    ;;
  # sharers: a line for each environment: the image it came from, its size in kB, how much of that is its
  # own, whose it is.
  sharers)
    for found in "$root/envs"/*/current; do
      [ -d "$found/" ] || continue
      from=$(cat "$found/seedbed.from" 2>/dev/null || true)
      whose=$(cat "${found%/current}/about.json" 2>/dev/null || true)
      printf '%s\t%s\t%s\t%s\n' "$from" "$(du -sk "$found/" | cut -f 1)" "$(own "$found")" "$whose"
    done
    ;;
  # drop NAME ...: removes images, and what was left over of others.
  drop)
    lock_images -x
    for name in "$@"; do
      [ ! -d "$frozen/$name" ] || mv -T "$frozen/$name" "$frozen/.gone.$name.$$"
    done
    rm -rf "$frozen"/.gone.*
    ;;
  # leave PROJECT BLANKS: removes the environment, and with the last one of its project the empty clusters of that and
  # its images, but for those that others' data came from. PROJECT is a JSON string, BLANKS what the names of those
  # clusters begin with. Prints whether it was there, and how many others there are.
  leave)
    was=no
    if [ -d "$env" ]; then
      was=yes
      lock_env
      rm -rf "$env"
    fi
    # Of an image that it was taking.
    rm -rf "$root/images"/.*."${env##*/}" "$root/images/.gone.${env##*/}".*
    rm -rf "$root/blank"/.*."${env##*/}"
    if [ -d "$root/blank" ] && ! grep -qsF "\"project\":$1," "$root/envs"/*/about.json; then
      # Somebody may begin just now, and be the next to leave.
      ! lock_blank -x || drop_blanks "$2-"
      exec 9>&-
    fi
    if [ -d "$frozen" ] && ! grep -qsF "\"project\":$1," "$root/envs"/*/about.json; then
      lock_images -x
      for found in $(grep -lsF "\"project\":$1," "$frozen"/*/image.json); do
        image=${found%/image.json}
        grep -qsxF "${image##*/}" "$root/envs"/*/current/seedbed.from \
          || mv -T "$image" "$frozen/.gone.${image##*/}.$$"
      done
      rm -rf "$frozen"/.gone.*
    fi
    set -- "$root/envs"/*
    [ -e "$1" ] || shift
    echo "$was $#"
    ;;
  *) fail "no such act: $act" ;;
esac
