/* SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0) */
/*
 * acl.h - the ACL layers. Every question about a connection is answered with a vector of the rules that are content
 * with it (layout.h, "ACL tables"); the first rule in all of them decides, and none blocks.
 */
#ifndef SAMEWIRE_ACL_H
#define SAMEWIRE_ACL_H

#include "account.h"
#include "tables.h"

/* Room for what would not fit on the stack. */
struct sw_acl_scratch {
	struct sw_acl_vector joined[2]; /* by side: the rules that an address and its sets satisfy */
	struct sw_acl_prefix_key prefix;
	struct sw_acl_port_key port;
	struct sw_acl_any_key any;
	/* The sets of an address being looked through. */
	struct sw_set_class_key class;
	struct sw_acl_set_key set;
	__u32 words;
	__u32 shape;
	__u8 family;
	__u8 protocol;
	/* The search for the first rule that is content with all answers. */
	struct sw_acl_rule_key rule;
	__u64 summary; /* words in which it may be */
	__u32 from;    /* rules before this one are passed */
	__u32 name;    /* the rule's */
	__s32 action;  /* the rule's; -1: there is none */
};

SW_MAP(sw_acl_scratch, BPF_MAP_TYPE_PERCPU_ARRAY, __u32, struct sw_acl_scratch, 1, 0);

SW_INLINE struct sw_acl_scratch *sw_acl_scratch_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&sw_acl_scratch, &zero);
}

/* The place of the lowest bit: the number of zeros below it. Without branches, of which the verifier tries every one. */
SW_INLINE __u32 sw_lowest_bit(__u64 word)
{
	__u64 n = (word & -word) - 1;

	n -= (n >> 1) & 0x5555555555555555ULL;
	n = (n & 0x3333333333333333ULL) + ((n >> 2) & 0x3333333333333333ULL);
	n = (n + (n >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return (n * 0x0101010101010101ULL) >> 56;
}

/* A table's vectors use only its first words; most tables have one. */
SW_INLINE void sw_acl_add(struct sw_acl_vector *to, const struct sw_acl_vector *from, __u32 words)
{
	int i;

	to->summary |= from->summary;
	to->word[0] |= from->word[0];
	if (words == 1)
		return;
	for (i = 1; i < SW_ACL_WORDS; i++)
		to->word[i] |= from->word[i];
}

/* One of the sets that an address is in: the rules that name it join in. */
static long sw_acl_join_set(__u32 index, void *context)
{
	struct sw_acl_scratch *scratch = sw_acl_scratch_here();
	struct sw_acl_vector *more;
	struct sw_set_class *sets;
	__u64 *number;

	if (!scratch)
		return 1;
	scratch->class.chunk = index / SW_CLASS_SETS;
	sets = bpf_map_lookup_elem(&sw_set_classes, &scratch->class);
	if (!sets)
		return 1;
	scratch->set.set = sets->set[index % SW_CLASS_SETS];
	if (!scratch->set.set)
		return 1;
	number = bpf_map_lookup_elem(&sw_acl_sets, &scratch->set);
	if (!number)
		return 0;
	more = bpf_map_lookup_elem(&sw_acl_vectors, number);
	if (more)
		sw_acl_add(&scratch->joined[scratch->set.side & 1], more, scratch->words);
	return 0;
}

SW_INLINE void sw_acl_prefix_key(struct sw_acl_prefix_key *key, __u64 table, __u8 family, __u8 side,
				 const struct sw_addr *address)
{
	key->prefix_bits = 96 + (family == 4 ? 32 : 128);
	key->table_low = table;
	key->table_high = table >> 32;
	key->family = family;
	key->side = side;
	key->reserved[0] = 0;
	key->reserved[1] = 0;
	sw_copy_address(&key->address, address);
}

/*
 * The rules that name a set which an address is in, joined with those found by the address itself (0: none), into the
 * scratch of that side. Returns 0 when it is in no set. Global: verified once.
 */
__noinline int sw_acl_by_sets(struct sw_packet *p, __u64 space, __u32 side, const struct sw_acl_vector *found)
{
	struct sw_acl_scratch *scratch = sw_acl_scratch_here();
	struct sw_acl_vector *joined;
	__u64 *number;

	if (!p || !scratch)
		return 0;
	sw_acl_prefix_key(&scratch->prefix, space, p->family, SW_ACL_MEMBER,
			  side == SW_ACL_SOURCE ? &p->first.source : &p->out.destination);
	number = bpf_map_lookup_elem(&sw_set_members, &scratch->prefix);
	if (!number)
		return 0;
	joined = side == SW_ACL_SOURCE ? &scratch->joined[0] : &scratch->joined[1];
	joined->summary = 0;
	joined->word[0] = 0;
	if (scratch->words > 1)
		__builtin_memset(&joined->word[1], 0, sizeof(joined->word) - sizeof(joined->word[0]));
	if (found)
		sw_acl_add(joined, found, scratch->words);
	scratch->class.class_number = *number;
	scratch->set.side = side;
	bpf_loop(SW_CLASS_CHUNKS * SW_CLASS_SETS, sw_acl_join_set, 0, 0);
	return 1;
}

/* The rules that are content with an address; 0: none. */
static __noinline struct sw_acl_vector *sw_acl_by_address(struct sw_packet *p, struct sw_port *port,
							  struct sw_acl_scratch *scratch, __u32 side, int sets)
{
	const struct sw_addr *address = side == SW_ACL_SOURCE ? &p->first.source : &p->out.destination;
	struct sw_acl_vector *found;
	__u64 *number;

	sw_acl_prefix_key(&scratch->prefix, scratch->set.table, p->family, side, address);
	number = bpf_map_lookup_elem(&sw_acl_prefixes, &scratch->prefix);
	found = number ? bpf_map_lookup_elem(&sw_acl_vectors, number) : 0;
	if (!sets || !sw_acl_by_sets(p, port->acl_space, side, found))
		return found;
	return side == SW_ACL_SOURCE ? &scratch->joined[0] : &scratch->joined[1];
}

SW_INLINE struct sw_acl_vector *sw_acl_by_port(struct sw_acl_scratch *scratch, __u8 side, __u8 protocol, __be16 port)
{
	__u64 *number;

	scratch->port.prefix_bits = 96;
	scratch->port.table_low = scratch->set.table;
	scratch->port.table_high = scratch->set.table >> 32;
	scratch->port.side = side;
	scratch->port.protocol = protocol;
	scratch->port.port = port;
	number = bpf_map_lookup_elem(&sw_acl_ports, &scratch->port);
	return number ? bpf_map_lookup_elem(&sw_acl_vectors, number) : 0;
}

/* The rules of a long table that take any answer to a question; 0: none. */
SW_INLINE struct sw_acl_vector *sw_acl_by_any(struct sw_acl_scratch *scratch, __u8 side, __u8 family, __u8 protocol)
{
	scratch->any.table = scratch->set.table;
	scratch->any.side = side;
	scratch->any.family = family;
	scratch->any.protocol = protocol;
	return bpf_map_lookup_elem(&sw_acl_any, &scratch->any);
}

/* The same for an address or a source port; for one that no rule asks for, once more those of the service. */
SW_INLINE struct sw_acl_vector *sw_acl_by_any_of(struct sw_acl_scratch *scratch, __u32 asked, __u8 side, __u8 family)
{
	if (scratch->shape & asked)
		return sw_acl_by_any(scratch, side, family, 0);
	return sw_acl_by_any(scratch, SW_ACL_DESTINATION, 0, scratch->protocol);
}

/* The answers to all questions: the rules content with each, and those that take any answer; 0: none. */
struct sw_acl_answers {
	const struct sw_acl_vector *found[4];
	const struct sw_acl_vector *any[4];
};

/*
 * The rules of a place (0: the summary, then the words) that are content with an answer. Global: the search would be
 * verified for every origin that each of its eight vectors may have.
 */
__noinline __u64 sw_acl_content(const struct sw_acl_vector *found, const struct sw_acl_vector *any, __u32 place)
{
	__u64 rules = 0;

	if (place > SW_ACL_WORDS)
		return 0;
	if (found)
		rules = ((const __u64 *)found)[place];
	if (any)
		rules |= ((const __u64 *)any)[place];
	return rules;
}

static long sw_acl_look(__u32 index, void *context)
{
	struct sw_acl_scratch *search = sw_acl_scratch_here();
	struct sw_acl_answers *answers = context;
	struct sw_acl_rule *rule;
	__u32 word = 0, place = 0, from;
	__u64 bits;

	if (!search)
		return 1;
	if (index) {
		if (!search->summary)
			return 1;
		word = sw_lowest_bit(search->summary) & (SW_ACL_WORDS - 1);
		place = word + 1;
	}
	bits = sw_acl_content(answers->found[0], answers->any[0], place) &
	       sw_acl_content(answers->found[1], answers->any[1], place) &
	       sw_acl_content(answers->found[2], answers->any[2], place) &
	       sw_acl_content(answers->found[3], answers->any[3], place);
	if (!index) {
		search->summary = bits;
		return 0;
	}
	from = search->from;
	if (word == from >> 6)
		bits &= ~0ULL << (from & 63);
	if (!bits) {
		search->summary &= search->summary - 1;
		return 0;
	}
	search->rule.index = word << 6 | sw_lowest_bit(bits);
	rule = bpf_map_lookup_elem(&sw_acl_rules, &search->rule);
	if (!rule)
		return 1;
	if (rule->action != SW_ACL_PASS) {
		search->name = rule->rule;
		search->action = rule->action;
		return 1;
	}
	search->from = rule->next;
	search->summary &= ~0ULL << ((rule->next >> 6) & 63);
	return 0;
}

/*
 * The action of the first rule that is content with the answers to all four questions, -1 for none; its name is left in
 * the scratch. Pass goes on at the next stage. A global function: verified once, and not for every origin that the vectors may have.
 */
__noinline int sw_acl_first(const struct sw_acl_vector *service, const struct sw_acl_vector *source,
			    const struct sw_acl_vector *destination, const struct sw_acl_vector *source_port)
{
	struct sw_acl_answers answers = { .found = { service, source, destination, source_port } };
	/* With zeros as the key: the stack of the longest chain has no room for another. */
	struct sw_acl_scratch *scratch = bpf_map_lookup_elem(&sw_acl_scratch, answers.any);

	if (!scratch)
		return -1;
	__builtin_memset(answers.any, 0, sizeof(answers.any)); /* Linux 6.1 forgets what was a key */
	scratch->action = -1;
	scratch->rule.table = scratch->set.table;
	scratch->from = 0;
	if (scratch->words > 1) { /* all or none: the search is verified for each mixture */
		answers.any[0] = sw_acl_by_any(scratch, SW_ACL_DESTINATION, 0, scratch->protocol);
		answers.any[1] = sw_acl_by_any_of(scratch, SW_ACL_BY_SOURCE, SW_ACL_SOURCE, scratch->family);
		answers.any[2] = sw_acl_by_any_of(scratch, SW_ACL_BY_DESTINATION, SW_ACL_DESTINATION,
						  scratch->family);
		answers.any[3] = sw_acl_by_any_of(scratch, SW_ACL_BY_SOURCE_PORT, SW_ACL_SOURCE, 0);
	}
	bpf_loop(1 + SW_ACL_WORDS + SW_ACL_STAGES, sw_acl_look, &answers, 0);
	return scratch->action;
}

/*
 * Judges the connection p->first with the destination of p->out by one side's rules. Writes the rule to p->rule (0 out,
 * 1 in). Returns SW_ACL_ALLOW or SW_ACL_BLOCK. A global function: verified once.
 */
__noinline int sw_acl_decide(__u32 port_id, __u32 direction)
{
	struct sw_acl_vector *service, *source, *destination, *source_port;
	struct sw_acl_scratch *scratch = sw_acl_scratch_here();
	struct sw_packet *p = sw_packet_here();
	struct sw_port *port = sw_find_port(port_id);
	int action, ports;

	if (!p || !port || !scratch)
		return SW_ACL_BLOCK;
	scratch->shape = direction == SW_ACL_OUT ? port->acl_shape[1] : port->acl_shape[0];
	scratch->words = direction == SW_ACL_OUT ? port->acl_words[1] : port->acl_words[0];
	scratch->set.table = direction == SW_ACL_OUT ? port->acl_table[1] : port->acl_table[0];
	scratch->family = p->family;
	scratch->protocol = p->protocol;
	ports = sw_has_ports(p->protocol);
	service = sw_acl_by_port(scratch, SW_ACL_DESTINATION, p->protocol, ports ? p->out.destination_port : 0);
	/* A question that no rule asks: the first once more, as and-ing an answer with itself changes nothing. */
	source = destination = source_port = service;
	if (scratch->shape & SW_ACL_BY_SOURCE_PORT)
		source_port = sw_acl_by_port(scratch, SW_ACL_SOURCE, 0, ports ? p->first.source_port : 0);
	if (scratch->shape & SW_ACL_BY_SOURCE)
		source = sw_acl_by_address(p, port, scratch, SW_ACL_SOURCE, scratch->shape & SW_ACL_BY_SOURCE_SETS);
	if (scratch->shape & SW_ACL_BY_DESTINATION)
		destination = sw_acl_by_address(p, port, scratch, SW_ACL_DESTINATION,
						scratch->shape & SW_ACL_BY_DESTINATION_SETS);
	action = sw_acl_first(service, source, destination, source_port);
	if (action < 0)
		return SW_ACL_BLOCK;
	if (direction == SW_ACL_OUT)
		p->rule[0] = scratch->name;
	else
		p->rule[1] = scratch->name;
	if (scratch->name)
		sw_count_rule(port_id, scratch->name, direction);
	return action == SW_ACL_ALLOW ? SW_ACL_ALLOW : SW_ACL_BLOCK;
}

/*
 * The ACL layer of one side: the un-SNATed client and the chosen DIP. Leaves the rule in p->rule (0 out, 1 in). Returns
 * SW_GO_ON or a drop.
 */
SW_INLINE int sw_judge(struct sw_packet *p, struct sw_port *port, __u32 port_id, int side)
{
	__u8 layer = side == SW_ACL_OUT ? SW_LAYER_ACL_OUT : SW_LAYER_ACL_IN;

	if (!port->acl_words[side]) {
		sw_step(p, layer, SW_STEP_PASS, 0, 0, port_id);
		return SW_GO_ON;
	}
	if (sw_acl_decide(port_id, side) != SW_ACL_ALLOW)
		return sw_drop_at(p, port_id, layer, SW_REASON_BLOCKED, p->rule[side == SW_ACL_IN]);
	sw_step(p, layer, SW_STEP_PASS, SW_ACL_ALLOW, p->rule[side == SW_ACL_IN], port_id);
	return SW_GO_ON;
}

#endif /* SAMEWIRE_ACL_H */
