#include "probe.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

static struct sockaddr_in inet4(const char *host, int port)
{
    struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, host, &made.sin_addr);
    return made;
}

static struct sockaddr_in6 inet6(const char *host, int port)
{
    struct sockaddr_in6 made = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    inet_pton(AF_INET6, host, &made.sin6_addr);
    return made;
}

static struct sockaddr_un path_of(const char *path)
{
    struct sockaddr_un made = {.sun_family = AF_UNIX};
    strncpy(made.sun_path, path, sizeof made.sun_path - 1);
    return made;
}

static int listen_at(void *address, socklen_t length)
{
    int one = 1, fd = socket(((struct sockaddr *)address)->sa_family, SOCK_STREAM, 0);
    must(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) == 0);
    must(bind(fd, address, length) == 0 && listen(fd, 5) == 0);
    return fd;
}

static int connect_to(void *address, socklen_t length, int type)
{
    int fd = socket(((struct sockaddr *)address)->sa_family, type, 0);
    must(fd >= 0 && connect(fd, address, length) == 0);
    return fd;
}

/* Whether `text` written to one end comes out of the other. */
static int passes(int from, int to, const char *text)
{
    char got[64] = {0};
    struct pollfd ready = {.fd = to, .events = POLLIN};
    return write(from, text, strlen(text)) == (ssize_t)strlen(text) && poll(&ready, 1, 2000) == 1 &&
           read(to, got, sizeof got) == (ssize_t)strlen(text) && strcmp(got, text) == 0;
}

/* What a program sees of a connection that is gone. */
static void describe_lost(int fd)
{
    char byte;
    struct pollfd ready = {.fd = fd, .events = POLLIN | POLLOUT};
    int count = poll(&ready, 1, 0);
    say("poll %d%s%s%s", count, ready.revents & POLLIN ? " IN" : "", ready.revents & POLLHUP ? " HUP" : "",
        ready.revents & POLLERR ? " ERR" : "");
    ssize_t got = recv(fd, &byte, 1, MSG_DONTWAIT);
    say("read %s", got < 0 ? strerrorname_np(errno) : got == 0 ? "end" : "data");
    got = send(fd, "x", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
    say("write %s", got < 0 ? strerrorname_np(errno) : "done");
}

static int client, served, listener;

static void tcp_loopback(int version)
{
    struct sockaddr_in four = inet4("127.0.0.1", 7001);
    struct sockaddr_in6 six = inet6("::1", 7001);
    void *address = version == 4 ? (void *)&four : (void *)&six;
    socklen_t length = version == 4 ? sizeof four : sizeof six;
    listener = listen_at(address, length);
    client = connect_to(address, length, SOCK_STREAM);
    served = accept(listener, NULL, NULL);
    must(served >= 0 && write(client, "queued", 6) == 6);
    checkpoint_here();
    char got[16] = {0};
    check(recv(served, got, 6, MSG_DONTWAIT) == 6 && strcmp(got, "queued") == 0, "what was in the queue is there");
    check(passes(client, served, "there"), "the connection goes on");
    check(passes(served, client, "and back"), "in both directions");
    int again = connect_to(address, length, SOCK_STREAM);
    check(accept(listener, NULL, NULL) >= 0 && again >= 0, "the listening socket takes a new connection");
}

static void tcp_loopback_4(void) { tcp_loopback(4); }
static void tcp_loopback_6(void) { tcp_loopback(6); }

/* A connection within, and one to the address in the environment, which is outside. */
static void tcp_outside(void)
{
    struct sockaddr_in inside = inet4("127.0.0.1", 7001), outside = inet4(getenv("PEER"), atoi(getenv("PEER_PORT")));
    listener = listen_at(&inside, sizeof inside);
    client = connect_to(&inside, sizeof inside, SOCK_STREAM);
    served = accept(listener, NULL, NULL);
    int lost = connect_to(&outside, sizeof outside, SOCK_STREAM);
    must(write(lost, "hello", 5) == 5);
    checkpoint_here();
    if (getenv("KEPT"))
        say("inside %s", passes(client, served, "there") ? "goes on" : "is lost");
    else
        describe_lost(client);
    describe_lost(lost);
}

static void listening(void)
{
    int one = 1, got = 0;
    socklen_t length = sizeof got;
    struct sockaddr_in any = inet4("0.0.0.0", 7002), here = inet4("127.0.0.1", 7002), udp = inet4("0.0.0.0", 7003);
    struct sockaddr_in6 any6 = inet6("::", 7004), here6 = inet6("::1", 7004), udp6 = inet6("::1", 7005);
    int four = listen_at(&any, sizeof any), six = listen_at(&any6, sizeof any6);
    int data = socket(AF_INET, SOCK_DGRAM, 0), data6 = socket(AF_INET6, SOCK_DGRAM, 0);
    must(setsockopt(data, SOL_SOCKET, SO_BROADCAST, &one, sizeof one) == 0);
    must(bind(data, (void *)&udp, sizeof udp) == 0 && bind(data6, (void *)&udp6, sizeof udp6) == 0);
    struct sockaddr_in there = inet4("127.0.0.1", 7003);
    int talker = connect_to(&there, sizeof there, SOCK_DGRAM), talker6 = connect_to(&udp6, sizeof udp6, SOCK_DGRAM);
    checkpoint_here();
    connect_to(&here, sizeof here, SOCK_STREAM);
    connect_to(&here6, sizeof here6, SOCK_STREAM);
    check(accept(four, NULL, NULL) >= 0, "IPv4 listens");
    check(accept(six, NULL, NULL) >= 0, "IPv6 listens");
    check(getsockopt(four, SOL_SOCKET, SO_REUSEADDR, &got, &length) == 0 && got == 1, "SO_REUSEADDR is set");
    check(passes(talker, data, "datagram"), "UDP passes");
    check(passes(talker6, data6, "datagram"), "UDP over IPv6 passes");
    check(getsockopt(data, SOL_SOCKET, SO_BROADCAST, &got, &length) == 0 && got == 1, "SO_BROADCAST is set");
}

/* A connection that nobody has accepted yet. */
static void in_flight(void)
{
    struct sockaddr_in here = inet4("127.0.0.1", 7007);
    listener = listen_at(&here, sizeof here);
    client = connect_to(&here, sizeof here, SOCK_STREAM);
    checkpoint_here();
    check(accept(listener, NULL, NULL) >= 0, "it is accepted");
}

/* A socket bound to an address that the restored container may not have. */
static void bound(void)
{
    struct sockaddr_in here = inet4(getenv("PEER"), 7006);
    int fd = listen_at(&here, sizeof here);
    checkpoint_here();
    check(fd >= 0, "restored");
}

static void unix_sockets(void)
{
    int pair[2], packets[2];
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets) == 0);
    struct sockaddr_un path = path_of("/tmp/listening"), datagram = path_of("/tmp/datagram");
    struct sockaddr_un abstract = path_of("?abstract");
    abstract.sun_path[0] = 0;
    int by_path = listen_at(&path, sizeof path);
    int to_path = connect_to(&path, sizeof path, SOCK_STREAM), accepted = accept(by_path, NULL, NULL);
    int by_name = listen_at(&abstract, sizeof abstract);
    int to_name = connect_to(&abstract, sizeof abstract, SOCK_STREAM), accepted_name = accept(by_name, NULL, NULL);
    int messages = socket(AF_UNIX, SOCK_DGRAM, 0);
    must(bind(messages, (void *)&datagram, sizeof datagram) == 0);
    int sender = connect_to(&datagram, sizeof datagram, SOCK_DGRAM);
    must(write(pair[0], "queued", 6) == 6);
    checkpoint_here();
    char got[16] = {0};
    check(recv(pair[1], got, 6, MSG_DONTWAIT) == 6 && strcmp(got, "queued") == 0, "what was in the queue is there");
    check(passes(pair[0], pair[1], "pair"), "the pair passes");
    check(passes(packets[0], packets[1], "packet"), "packets pass");
    check(passes(to_path, accepted, "path"), "the connection by path passes");
    check(passes(to_name, accepted_name, "name"), "the connection by abstract name passes");
    check(passes(sender, messages, "message"), "datagrams pass");
    connect_to(&path, sizeof path, SOCK_STREAM);
    connect_to(&abstract, sizeof abstract, SOCK_STREAM);
    check(accept(by_path, NULL, NULL) >= 0 && accept(by_name, NULL, NULL) >= 0, "both take new connections");
}

/* A connection, or a datagram socket, to a socket whose owner is outside of the container. */
static void unix_outside(void)
{
    struct sockaddr_un path = path_of("/data/outside");
    int fd = connect_to(&path, sizeof path, strcmp(getenv("TYPE"), "datagram") == 0 ? SOCK_DGRAM : SOCK_STREAM);
    checkpoint_here();
    check(write(fd, "hello", 5) == 5, "the socket outside is reached");
}

const struct situation socket_situations[] = {
    {"tcp-loopback-4", tcp_loopback_4},
    {"tcp-loopback-6", tcp_loopback_6},
    {"tcp-outside", tcp_outside},
    {"listening", listening},
    {"in-flight", in_flight},
    {"bound", bound},
    {"unix", unix_sockets},
    {"unix-outside", unix_outside},
    {0},
};
