// SPDX-License-Identifier: Apache-2.0
/*
 * What the kernel takes to attach pods: the network messages of a CNI ADD and nothing else.
 *
 *   bare_pairs -i PODS -n NETNS
 *
 * PODS is a file of lines "<any word> <netns path>", NETNS the node's namespace. For each pod: a veth pair with one
 * end there, clsact and a program on the near end, both ends up, an address, a default route and the gateway's
 * neighbour entry. No files, no bookkeeping, messages written by hand: a node's daemon cannot be below this.
 *
 * Prints {"cpu_ms": [one per pod]}: user and system time of this process.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PODS_MAX 4096
#define BATCH_BYTES 2048
#define ANSWER_BYTES 8192
#define GATEWAY "10.244.0.1"
#define FIRST_ADDRESS 0x0af40002u /* 10.244.0.2 */
#define SUBNET_BITS 16

static const unsigned char gateway_mac[6] = { 0x02, 0, 0, 0, 0, 0x01 };

/* Messages that go out in one system call; the last one is acknowledged. */
struct batch {
	char data[BATCH_BYTES];
	size_t length;
	struct nlmsghdr *last;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void *grow(struct batch *b, size_t length)
{
	void *at = b->data + b->length;

	b->length += NLMSG_ALIGN(length);
	if (b->length > sizeof(b->data))
		die("a batch is too long");
	memset(at, 0, NLMSG_ALIGN(length));
	if (b->last)
		b->last->nlmsg_len = b->data + b->length - (char *)b->last;
	return at;
}

static void *message(struct batch *b, int type, int flags, size_t header)
{
	struct nlmsghdr *h;

	b->last = NULL;
	h = grow(b, sizeof(*h));
	h->nlmsg_type = type;
	h->nlmsg_flags = NLM_F_REQUEST | flags;
	b->last = h;
	return grow(b, header);
}

static struct rtattr *put(struct batch *b, int type, const void *value, size_t length)
{
	struct rtattr *attribute = grow(b, RTA_LENGTH(length));

	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(length);
	if (length)
		memcpy(RTA_DATA(attribute), value, length);
	return attribute;
}

static void put_u32(struct batch *b, int type, __u32 value)
{
	put(b, type, &value, sizeof(value));
}

static void close_nest(struct batch *b, struct rtattr *nest)
{
	nest->rta_len = b->data + b->length - (char *)nest;
}

/* Sends a batch and reads the answers to it; what is made is announced to us if echo. Returns the new index. */
static int exchange(int fd, struct batch *b, int echo)
{
	char answer[ANSWER_BYTES];
	int made = 0;

	b->last->nlmsg_flags |= NLM_F_ACK | (echo ? NLM_F_ECHO : 0);
	if (send(fd, b->data, b->length, 0) < 0)
		die("send");
	for (;;) {
		ssize_t n = recv(fd, answer, sizeof(answer), 0);

		if (n < 0)
			die("recv");
		for (struct nlmsghdr *h = (void *)answer; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
			struct nlmsgerr *error = NLMSG_DATA(h);

			if (h->nlmsg_type == RTM_NEWLINK)
				made = ((struct ifinfomsg *)NLMSG_DATA(h))->ifi_index;
			if (h->nlmsg_type != NLMSG_ERROR)
				continue;
			if (error->error) {
				fprintf(stderr, "netlink: %s\n", strerror(-error->error));
				exit(1);
			}
			return made;
		}
	}
}

static void put_names(struct batch *b, const char *name, const unsigned char *mac)
{
	put(b, IFLA_IFNAME, name, strlen(name) + 1);
	put(b, IFLA_ADDRESS, mac, 6);
	put_u32(b, IFLA_MTU, 1450);
	put_u32(b, IFLA_NUM_TX_QUEUES, 1);
	put_u32(b, IFLA_NUM_RX_QUEUES, 1);
}

static int make_pair(int fd, int pod, int netns)
{
	unsigned char mac[6] = { 0x02, 0, 0, 1, pod >> 8, pod };
	struct rtattr *info, *data, *peer;
	struct batch b = { 0 };
	char name[IFNAMSIZ];

	snprintf(name, sizeof(name), "bare%d", pod);
	message(&b, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof(struct ifinfomsg));
	put_names(&b, name, gateway_mac);
	info = put(&b, IFLA_LINKINFO, NULL, 0);
	put(&b, IFLA_INFO_KIND, "veth", 4);
	data = put(&b, IFLA_INFO_DATA, NULL, 0);
	peer = put(&b, VETH_INFO_PEER, NULL, 0);
	grow(&b, sizeof(struct ifinfomsg));
	put_names(&b, "eth0", mac);
	put_u32(&b, IFLA_NET_NS_FD, netns);
	close_nest(&b, peer);
	close_nest(&b, data);
	close_nest(&b, info);
	return exchange(fd, &b, 1);
}

static void put_up(struct batch *b, int ifindex)
{
	struct ifinfomsg *link = message(b, RTM_SETLINK, 0, sizeof(*link));

	*link = (struct ifinfomsg){ .ifi_index = ifindex, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
}

static void open_near(int fd, int ifindex, int program)
{
	struct batch b = { 0 };
	struct rtattr *options;
	struct tcmsg *tc;

	tc = message(&b, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, sizeof(*tc));
	*tc = (struct tcmsg){ .tcm_ifindex = ifindex, .tcm_handle = TC_H_MAKE(TC_H_CLSACT, 0), .tcm_parent = TC_H_CLSACT };
	put(&b, TCA_KIND, "clsact", sizeof("clsact"));
	tc = message(&b, RTM_NEWTFILTER, NLM_F_CREATE, sizeof(*tc));
	*tc = (struct tcmsg){ .tcm_ifindex = ifindex,
			      .tcm_handle = 1,
			      .tcm_parent = TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS),
			      .tcm_info = TC_H_MAKE(1u << 16, htons(3)) }; /* ETH_P_ALL */
	put(&b, TCA_KIND, "bpf", sizeof("bpf"));
	options = put(&b, TCA_OPTIONS, NULL, 0);
	put_u32(&b, TCA_BPF_FD, program);
	put(&b, TCA_BPF_NAME, "bare", sizeof("bare"));
	put_u32(&b, TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
	close_nest(&b, options);
	put_up(&b, ifindex);
	exchange(fd, &b, 0);
}

static void open_far(int fd, int pod)
{
	__u32 address = htonl(FIRST_ADDRESS + pod), gateway = inet_addr(GATEWAY), ifindex = if_nametoindex("eth0");
	struct batch b = { 0 };
	struct ifaddrmsg *of;
	struct rtmsg *route;
	struct ndmsg *neighbour;

	put_up(&b, ifindex);
	of = message(&b, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof(*of));
	*of = (struct ifaddrmsg){ .ifa_family = AF_INET, .ifa_prefixlen = SUBNET_BITS, .ifa_index = ifindex };
	put(&b, IFA_LOCAL, &address, sizeof(address));
	put(&b, IFA_ADDRESS, &address, sizeof(address));
	route = message(&b, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof(*route));
	*route = (struct rtmsg){ .rtm_family = AF_INET,
				 .rtm_table = RT_TABLE_MAIN,
				 .rtm_protocol = RTPROT_STATIC,
				 .rtm_type = RTN_UNICAST };
	put(&b, RTA_GATEWAY, &gateway, sizeof(gateway));
	put_u32(&b, RTA_OIF, ifindex);
	neighbour = message(&b, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof(*neighbour));
	*neighbour = (struct ndmsg){ .ndm_family = AF_INET, .ndm_ifindex = ifindex, .ndm_state = NUD_PERMANENT };
	put(&b, NDA_DST, &gateway, sizeof(gateway));
	put(&b, NDA_LLADDR, gateway_mac, sizeof(gateway_mac));
	exchange(fd, &b, 0);
}

static int netlink_socket(void)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd < 0)
		die("netlink socket");
	return fd;
}

static int enter(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die(path);
	return fd;
}

/* "return TC_ACT_SHOT" */
static int load_program(void)
{
	struct bpf_insn code[] = { { .code = BPF_ALU64 | BPF_MOV | BPF_K, .imm = TC_ACT_SHOT },
				   { .code = BPF_JMP | BPF_EXIT } };
	union bpf_attr attr = { .prog_type = BPF_PROG_TYPE_SCHED_CLS,
				.insns = (unsigned long)code,
				.insn_cnt = sizeof(code) / sizeof(code[0]),
				.license = (unsigned long)"GPL" };
	int fd = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));

	if (fd < 0)
		die("load a program");
	return fd;
}

static double cpu_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}

static double attach(int node, int near, int program, int pod, const char *path)
{
	double start = cpu_ms();
	int netns = enter(path), far = netlink_socket();

	open_near(near, make_pair(near, pod, netns), program);
	open_far(far, pod);
	if (setns(node, CLONE_NEWNET))
		die("back to the node");
	close(far);
	close(netns);
	return cpu_ms() - start;
}

int main(int argc, char **argv)
{
	const char *pods = NULL, *node = NULL;
	int option, own, near, program, count = 0;
	char path[256];
	FILE *listing;

	while ((option = getopt(argc, argv, "i:n:")) != -1) {
		if (option == 'i')
			pods = optarg;
		else if (option == 'n')
			node = optarg;
		else
			return 2;
	}
	if (!pods || !node)
		return 2;
	listing = fopen(pods, "r");
	if (!listing)
		die(pods);
	own = enter(node);
	near = netlink_socket();
	program = load_program();
	printf("{\"cpu_ms\": [");
	while (count < PODS_MAX && fscanf(listing, "%*s %255s", path) == 1) {
		printf("%s%.4f", count ? ", " : "", attach(own, near, program, count, path));
		count++;
	}
	printf("]}\n");
	return 0;
}
